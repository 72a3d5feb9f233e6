//! A `serve` of its own for each test, and a client of few lines that sees every byte.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

/// For anything that is waited for.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

pub(crate) struct Server {
    pub(crate) child: Child,
    pub(crate) address: SocketAddr,
}

pub(crate) struct Response {
    pub(crate) status: u16,
    pub(crate) head: String,
    pub(crate) body: String,
}

impl Server {
    pub(crate) fn start(args: &[&str]) -> Self {
        let mut child = Command::new(env!("CARGO_BIN_EXE_serve"))
            .args(["--bind", "127.0.0.1:0"])
            .args(args)
            .env_remove("LLAMA_API_KEY")
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let address = line.split("http://").nth(1).and_then(|rest| rest.split(": ").next()).unwrap();
        Self { address: address.parse().unwrap(), child }
    }

    /// Sends a request, and leaves the answer to be read.
    pub(crate) fn send(&self, method: &str, path: &str, headers: &[&str], body: &[u8]) -> TcpStream {
        let mut stream = TcpStream::connect(self.address).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let headers: String = headers.iter().map(|header| format!("{header}\r\n")).collect();
        let len = body.len();
        let head = format!(
            "{method} {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: {len}\r\n{headers}\r\n"
        );
        stream.write_all(head.as_bytes()).unwrap();
        stream.write_all(body).unwrap();
        stream
    }

    pub(crate) fn send_json(&self, path: &str, body: &Value) -> TcpStream {
        self.send("POST", path, &["Content-Type: application/json"], body.to_string().as_bytes())
    }

    pub(crate) fn post(&self, path: &str, body: &Value) -> Response {
        Response::read(self.send_json(path, body))
    }

    pub(crate) fn get(&self, path: &str) -> Response {
        Response::read(self.send("GET", path, &[], b""))
    }

    /// A number that Prometheus would see.
    pub(crate) fn metric(&self, name: &str) -> f64 {
        let metrics = self.get("/metrics").body;
        let line = metrics.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        line.unwrap_or_else(|| panic!("no {name} in {metrics}")).parse().unwrap()
    }

    /// Requests that have ended so.
    pub(crate) fn ended(&self, outcome: &str) -> f64 {
        self.metric(&format!("serve_requests_total{{outcome=\"{outcome}\"}}"))
    }

    /// Waits until a number is so.
    pub(crate) fn wait_for(&self, name: &str, is_so: impl Fn(f64) -> bool) {
        let begun = Instant::now();
        while !is_so(self.metric(name)) {
            assert!(begun.elapsed() < PATIENCE, "{name} is {}", self.metric(name));
        }
    }

    /// Waits until nothing is being done.
    pub(crate) fn wait_until_idle(&self) {
        for name in ["llama_running", "llama_waiting", "serve_answers_in_flight"] {
            self.wait_for(name, |value| value == 0.0);
        }
    }

    pub(crate) fn terminate(&self) {
        let kill = Command::new("kill").args(["-TERM", &self.child.id().to_string()]).status().unwrap();
        assert!(kill.success());
    }

    /// Waits until it has ended.
    pub(crate) fn wait(&mut self) -> ExitStatus {
        let begun = Instant::now();
        loop {
            match self.child.try_wait().unwrap() {
                Some(status) => return status,
                None => assert!(begun.elapsed() < PATIENCE, "the server does not end"),
            }
            std::thread::yield_now();
        }
    }

    /// Kilobytes of memory that it holds; 0 where Linux does not say.
    pub(crate) fn resident(&self) -> u64 {
        if cfg!(not(target_os = "linux")) {
            return 0;
        }
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
        line.trim().trim_end_matches(" kB").parse().unwrap()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Response {
    pub(crate) fn read(mut stream: TcpStream) -> Self {
        let mut bytes = Vec::new();
        stream.read_to_end(&mut bytes).unwrap();
        let text = String::from_utf8(bytes).unwrap();
        let (head, body) = text.split_once("\r\n\r\n").unwrap_or_else(|| panic!("no response: {text:?}"));
        let status = head.split(' ').nth(1).unwrap().parse().unwrap();
        let head = head.to_lowercase();
        let body =
            if head.contains("transfer-encoding: chunked") { unchunked(body) } else { body.to_owned() };
        Self { status, head, body }
    }

    /// A header's value; all of the head is in lower case.
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.head.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": "))
    }

    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|error| panic!("{error}: {}", self.body))
    }

    /// The events of a stream, of which the last says so.
    pub(crate) fn events(&self) -> Vec<Value> {
        let mut data: Vec<&str> = self.body.lines().filter_map(|line| line.strip_prefix("data: ")).collect();
        assert_eq!(data.pop(), Some("[DONE]"), "{}", self.body);
        data.into_iter().map(|data| serde_json::from_str(data).unwrap()).collect()
    }
}

fn unchunked(mut rest: &str) -> String {
    let mut body = String::new();
    while let Some((len, tail)) = rest.split_once("\r\n") {
        let len = usize::from_str_radix(len, 16).unwrap();
        body.push_str(&tail[..len]);
        rest = &tail[len + 2..];
    }
    body
}
