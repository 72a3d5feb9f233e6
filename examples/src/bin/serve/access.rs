//! [`Access`]: who may ask: hosts and web pages that the server answers to, and who has the key.
//!
//! A server on this machine alone is still in reach of every web page that is open on it. Browsers send a page's requests wherever the page
//! says; and who owns a domain can have its name point to 127.0.0.1, so that to the browser this server is the page's own. So, where there is no key
//! to tell the two apart, a request's `Host` must be a name that nobody else owns, and its `Origin` none that is foreign.

use std::net::IpAddr;

use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};

use crate::error::ApiError;

#[derive(Debug)]
pub(crate) struct Access {
    key: Option<Key>,
    /// Web pages of other origins that may ask, or `*`.
    origins: Vec<String>,
    /// Names in `Host` that are this server's, beside `localhost`; `None`: any.
    hosts: Option<Vec<String>>,
}

/// A secret, which nobody prints.
struct Key(String);

impl Access {
    pub(crate) fn new(key: Option<String>, origins: Vec<String>, hosts: Option<Vec<String>>) -> Self {
        Self { key: key.map(Key), origins, hosts }
    }

    /// Whether a request is for this server, and not sent by a web page that may not ask.
    pub(crate) fn check_source(&self, headers: &HeaderMap) -> Result<(), ApiError> {
        let Some(hosts) = &self.hosts else { return Ok(()) };
        let forbidden = |code, message: String| Err(ApiError::new(StatusCode::FORBIDDEN, code, message));
        let host = headers.get(header::HOST).and_then(|host| host.to_str().ok()).unwrap_or_default();
        if !is_own(host, hosts) {
            let message = format!("the host {host:?} is not this server's: --allow_host allows a name");
            return forbidden("host_not_allowed", message);
        }
        let Some(origin) = headers.get(header::ORIGIN) else { return Ok(()) };
        let scheme_and_host = origin.to_str().ok().and_then(|origin| origin.split_once("://"));
        let is_own = scheme_and_host.is_some_and(|(_, own)| own.eq_ignore_ascii_case(host));
        if is_own || self.allowed_origin(headers).is_some() {
            return Ok(());
        }
        let message = format!("web pages of {origin:?} may not ask: --allow_origin allows an origin");
        forbidden("origin_not_allowed", message)
    }

    /// Whether a request has the key, where its route needs it: the page and the health are for all.
    pub(crate) fn check_key(&self, route: &str, headers: &HeaderMap) -> Result<(), ApiError> {
        let Some(key) = &self.key else { return Ok(()) };
        if ["/", "/health"].contains(&route) {
            return Ok(());
        }
        let message = match headers.get(header::AUTHORIZATION).map(|given| bearer(given.as_bytes())) {
            Some(Some(given)) if key.is(given) => return Ok(()),
            Some(Some(_)) => "the API key is not this server's",
            _ => "there is no API key: send the header `Authorization: Bearer KEY`",
        };
        let error = ApiError::new(StatusCode::UNAUTHORIZED, "invalid_api_key", message);
        Err(error.with_header("www-authenticate", "Bearer"))
    }

    /// The origin of a web page that may ask, though it is not this server's.
    pub(crate) fn allowed_origin(&self, headers: &HeaderMap) -> Option<HeaderValue> {
        let origin = headers.get(header::ORIGIN)?;
        self.origins.iter().any(|allowed| allowed == "*" || *origin == **allowed).then(|| origin.clone())
    }
}

/// Tells the browser that a page may read the response.
pub(crate) fn share(origin: HeaderValue, headers: &mut HeaderMap) {
    headers.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, origin);
    headers.insert(header::ACCESS_CONTROL_EXPOSE_HEADERS, HeaderValue::from_static("retry-after"));
}

/// Tells the browser that a page may send the request that it asks about: which headers come with it is the page's affair (clients have their own).
pub(crate) fn allow(asked: Option<HeaderValue>, headers: &mut HeaderMap) {
    let all = HeaderValue::from_static("authorization, content-type");
    let rest: [(HeaderName, HeaderValue); 3] = [
        (header::ACCESS_CONTROL_ALLOW_METHODS, HeaderValue::from_static("GET, POST")),
        (header::ACCESS_CONTROL_ALLOW_HEADERS, asked.unwrap_or(all)),
        (header::ACCESS_CONTROL_MAX_AGE, HeaderValue::from_static("600")),
    ];
    headers.extend(rest);
}

/// Whether a `Host` is one that only this server's own pages have. An address is: no name server points it elsewhere.
fn is_own(host: &str, hosts: &[String]) -> bool {
    let name = match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => name,
        _ => host,
    };
    let address = name.strip_prefix('[').and_then(|name| name.strip_suffix(']')).unwrap_or(name);
    let is_name = |own: &str| own.eq_ignore_ascii_case(name);
    address.parse::<IpAddr>().is_ok() || is_name("localhost") || hosts.iter().any(|own| is_name(own))
}

/// The key of an `Authorization` header.
fn bearer(given: &[u8]) -> Option<&[u8]> {
    let (scheme, key) = given.split_at_checked("Bearer ".len())?;
    scheme.eq_ignore_ascii_case(b"Bearer ").then(|| key.trim_ascii())
}

impl Key {
    /// Compares all of it, whatever differs first: the time tells nothing.
    fn is(&self, given: &[u8]) -> bool {
        let key = self.0.as_bytes();
        let differs = key.iter().zip(given).fold(0, |differs, (a, b)| differs | (a ^ b));
        key.len() == given.len() && std::hint::black_box(differs) == 0
    }
}

impl std::fmt::Debug for Key {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Key")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_is_own_if_nobody_else_can_have_it() {
        let hosts = ["llama.home".to_owned()];
        let own = ["localhost", "LocalHost:8080", "127.0.0.1:80", "[::1]:8080", "[::1]", "Llama.home:1"];
        for host in own {
            assert!(is_own(host, &hosts), "{host}");
        }
        let foreign = ["", ":8080", "evil.example", "localhost.evil.example:8080", "127.0.0.1.evil.example"];
        for host in
            foreign.into_iter().chain(["llama.home.evil.example", "evil.example:localhost", "localhost@evil"])
        {
            assert!(!is_own(host, &hosts), "{host}");
        }
    }

    #[test]
    fn a_key_comes_with_its_scheme() {
        for given in ["Bearer key", "bearer key", "BEARER  key "] {
            assert_eq!(bearer(given.as_bytes()), Some(&b"key"[..]));
        }
        for given in ["key", "Basic key", "Bearerkey", ""] {
            assert_eq!(bearer(given.as_bytes()), None, "{given}");
        }
    }
}
