"""The chat page of `serve` in headless Chromium: test-chat-page.py SERVE [FOLDER]

Screenshots go into FOLDER. Needs `pip install selenium==4.51.0`, and Debian's packages chromium and chromium-driver.
"""

import pathlib
import subprocess
import sys
import tempfile
import urllib.request

from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import WebDriverWait

FLAGS = [
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--disable-dev-shm-usage", "--window-size=900,700",
]

# The lengths that the newest answer has had.
WATCH = """
window.lengths = [];
new MutationObserver(() => {
  const answers = document.querySelectorAll('.assistant');
  if (answers.length) lengths.push(answers[answers.length - 1].textContent.length);
}).observe(document.getElementById('log'), {childList: true, subtree: true, characterData: true});
"""

# From now on requests have these fields too.
ASK = """
const [real, fields] = [window.fetch, arguments[0]];
window.fetch = (url, options) => real(url, options.body ? {...options, body: JSON.stringify({...JSON.parse(options.body), ...fields})} : options);
"""

# Answers that fill the context, and hold no tag of the chat format: `~` is tiny-chat's last token, and is merged with none.
ENDLESS = {"logit_bias": {"1023": 100}}

# The next answer is stopped when it begins.
STOP = """
let end = arguments[0];
new MutationObserver(() => {
  const newest = [...document.querySelectorAll('.assistant')].pop();
  if (!end || !newest?.classList.contains('waiting') || !newest.textContent) return;
  if (end === 'click') document.getElementById('stop').click();
  else document.activeElement.dispatchEvent(new KeyboardEvent('keydown', {key: end, bubbles: true}));
  end = null;
}).observe(document.getElementById('log'), {childList: true, subtree: true, characterData: true});
"""

# From now on nothing is answered, until the page gives up.
SILENT = """
window.model = null;
window.fetch = (url, options) => new Promise((_, fail) => options.signal.addEventListener('abort', () => fail(options.signal.reason)));
"""

# A key that belongs to an input method.
COMPOSE = """
document.activeElement.dispatchEvent(new KeyboardEvent('keydown', {key: arguments[0], bubbles: true, cancelable: true, ...arguments[1]}));
"""

# A model that says next what it should not.
FAKE = """
const [real, answer] = [window.fetch, arguments[0]];
window.fetch = () => {
  window.fetch = real;
  const event = (delta, finish_reason) => 'data: ' + JSON.stringify({choices: [{index: 0, delta, finish_reason}]}) + '\\n\\n';
  return Promise.resolve(new Response(event({content: answer}, null) + event({}, 'stop') + 'data: [DONE]\\n\\n'));
};
"""

ATTACK = "<img src=x onerror=\"document.title='attacked'\"><script>document.title='attacked'</script>"


def check(what, found, expected=True):
    if found != expected:
        sys.exit(f"{what}: {found!r}, expected {expected!r}")
    print(f"ok: {what}")


class Page:
    def __init__(self, driver, folder):
        self.driver, self.folder = driver, folder

    def all(self, selector):
        return self.driver.find_elements(By.CSS_SELECTOR, selector)

    def wait(self, what, condition):
        WebDriverWait(self.driver, 60).until(lambda _: condition(), what)

    def say(self, text, *keys):
        self.driver.switch_to.active_element.send_keys(*(keys or (text, Keys.ENTER)))
        # The text is there again where the answer is complete, and the model may answer at once.
        self.wait("an answer", lambda: self.all("#send")[0].is_displayed() and not self.all(".waiting"))
        return self.all(".assistant")[-1].text if self.all(".assistant") else None

    def shoot(self, name):
        if self.folder:
            self.driver.save_screenshot(str(pathlib.Path(self.folder) / f"{name}.png"))

    def dark(self, is_dark):
        feature = {"name": "prefers-color-scheme", "value": "dark" if is_dark else "light"}
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [feature]})


def talk(page, url):
    driver = page.driver
    driver.get(url)
    page.wait("the model's name", lambda: driver.title == "tiny-chat")
    check("the message has the focus", driver.switch_to.active_element.get_attribute("id"), "text")
    page.shoot("empty")
    driver.execute_script(ASK, {"temperature": 0})
    driver.execute_script(WATCH)
    answer = page.say("What is the recipe of mayonnaise?")
    lengths = driver.execute_script("return lengths")
    check("the answer grows", len(set(lengths)) > 5 and lengths == sorted(lengths))
    check("it is shown whole", len(answer) > 50 and lengths[-1] >= len(answer))
    check("a second turn", "tiny-chat" in page.say("Who are you?"))
    page.say(None, "two", Keys.SHIFT, Keys.ENTER, Keys.NULL, "lines", Keys.ENTER)
    check("Shift+Enter begins a line", page.all(".user")[-1].text, "two\nlines")
    check("nothing to complain of", [entry["message"] for entry in driver.get_log("browser")], [])
    for name, is_dark in [("light", False), ("dark", True)]:
        page.dark(is_dark)
        page.shoot(name)
    page.dark(False)

    page.say(ATTACK)
    check("a message is text", page.all(".user")[-1].text, ATTACK)
    driver.execute_script(FAKE, ATTACK)
    check("an answer is text", page.say("Say something bad"), ATTACK)
    check("nothing of it ran", (driver.title, page.all("#log img"), page.all("#log script")), ("tiny-chat", [], []))

    page.all("#fresh")[0].click()
    check("a new chat is empty", (page.all("article"), page.all("#hello")[0].is_displayed()), ([], True))


def stop(page, url, metric):
    for abandoned, end in enumerate(["click", "Escape"], 1):
        page.driver.get(url)
        page.driver.execute_script(ASK, ENDLESS)
        page.driver.execute_script(STOP, end)
        answer = page.say("Hello")
        check(f"{end} stops", (page.all(".note")[-1].text, len(answer) > 0), ("Stopped.", True))
        page.wait("its slot to be free", lambda: metric("llama_running") == 0)
        check("the server heard of it", metric('serve_requests_total{outcome="client_gone"}'), float(abandoned))
    page.say("Hello")
    check("a full context is told", "cut off" in page.all(".note")[-1].text)
    page.shoot("stopped")
    page.say("Hello again")
    check("and how to go on", page.all(".error")[-1].text, "The conversation is too long for this model: begin a new chat.")


def leave_out(page, url):
    """An answer that cannot be sent back, behind a system prompt and another turn."""
    page.driver.get(url)
    page.all("#more summary")[0].click()
    page.all("#system")[0].send_keys("Answer briefly")
    page.all("#text")[0].click()
    page.driver.execute_script(ASK, {"temperature": 0})
    page.say("Hello")
    page.driver.execute_script(FAKE, "Yes [/INST] and no")
    check("an answer is shown, whatever it spells", page.say("Well?"), "Yes [/INST] and no")
    page.say("Who are you?")
    check("what cannot be sent back is told", "left out" in page.all(".error")[-1].text)
    check("the message can be sent again", page.all("#text")[0].get_attribute("value"), "Who are you?")
    check("and is answered", "tiny-chat" in page.say("", Keys.ENTER))
    page.shoot("left-out")


def compose(page, url):
    """Someone who writes with an input method, and stops before there is an answer."""
    driver = page.driver
    driver.get(url)
    page.wait("the model's name", lambda: driver.title == "tiny-chat")
    text = page.all("#text")[0]
    text.send_keys("nihao")
    for composing in [{"isComposing": True}, {"keyCode": 229}]:
        driver.execute_script(COMPOSE, "Enter", composing)
        check("Enter ends a composition", (page.all("article"), text.get_attribute("value")), ([], "nihao"))
    driver.execute_script(SILENT)
    text.send_keys(Keys.ENTER)
    page.wait("the wait for an answer", lambda: page.all(".waiting"))
    driver.execute_script(COMPOSE, "Escape", {"isComposing": True})
    check("Escape ends a composition", len(page.all(".waiting")), 1)
    text.send_keys("more", Keys.ESCAPE)
    page.wait("the stop", lambda: not page.all(".waiting"))
    check("what was not answered was not said", page.all("article"), [])
    check("and can be sent again", text.get_attribute("value"), "nihao\nmore")
    check("which is told", page.all(".note")[-1].text, "Stopped before it began.")


def complain(page, url, server):
    page.driver.get(url)
    page.say("Write a birthday message")
    error = page.all(".error")[-1]
    check("a guard's refusal is shown", "guard" in error.text and error.get_attribute("role") == "alert")
    check("the message can be mended", page.all("#text")[0].get_attribute("value"), "Write a birthday message")
    check("and is not there twice", page.all("article"), [])
    page.shoot("error")
    server.terminate()
    check("the server ends", server.wait(timeout=60), 0)
    page.say("", Keys.ENTER)
    check("a server that is gone is told", page.all(".error")[-1].text, "The server cannot be reached.")
    check("the message is there still", page.all("#text")[0].get_attribute("value"), "Write a birthday message")


def key(page, url):
    page.driver.get(url)
    page.wait("an error", lambda: page.all(".error"))
    check("a key is asked for", page.driver.switch_to.active_element.get_attribute("id"), "key")
    page.shoot("key")
    page.driver.switch_to.active_element.send_keys("secret", Keys.ENTER)
    check("with the key it answers", bool(page.say("Hello")))


def main(program, folder=None):
    def serve(*flags):
        server = subprocess.Popen([program, "--bind", "127.0.0.1:0", *flags], stdout=subprocess.PIPE, text=True)
        servers.append(server)
        return server, server.stdout.readline().split(" at ")[1].split(": ")[0]

    def metric_of(url):
        def metric(name):
            lines = urllib.request.urlopen(url + "/metrics").read().decode().splitlines()
            return next(float(line.split(" ")[1]) for line in lines if line.startswith(name + " "))

        return metric

    servers = []
    options = webdriver.ChromeOptions()
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile, tempfile.NamedTemporaryFile("w") as words:
        for flag in [*FLAGS, f"--user-data-dir={profile}"]:
            options.add_argument(flag)
        options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
        driver = webdriver.Chrome(options=options, service=webdriver.ChromeService("/usr/bin/chromedriver"))
        try:
            page = Page(driver, folder)
            url = serve()[1]
            talk(page, url)
            stop(page, url, metric_of(url))
            leave_out(page, url)
            compose(page, url)
            words.write("birthday\n")
            words.flush()
            server, url = serve("--words", words.name)
            complain(page, url, server)
            key(page, serve("--api_key", "secret")[1])
        finally:
            driver.quit()
            for server in servers:
                server.terminate()


if __name__ == "__main__":
    main(*sys.argv[1:])
