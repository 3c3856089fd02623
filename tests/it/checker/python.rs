//! The checkers' Python, in the user's cache folder.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;
use std::{env, fs};

use sha2::{Digest, Sha256};

const REMEDY: &str = "the checker needs Python 3.11 or later with venv and pip: install python3-venv and python3-pip";

/// A program of the checker's folder, without arguments.
pub fn command(program: &str) -> Command {
    static PYTHON: OnceLock<PathBuf> = OnceLock::new();
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/checker");
    let packages = PYTHON.get_or_init(|| packages(&folder.join("requirements.txt")));
    let mut command = Command::new("python3");
    command.arg("-B").arg(folder.join(program)).env("PYTHONPATH", packages).stdin(Stdio::null());
    command
}

/// The folder with the drivers. It is filled beside its place and then moved there, so that whoever sees it sees all of
/// it, also when several processes fill it at once. A virtual environment cannot be moved; its packages can.
fn packages(requirements: &Path) -> PathBuf {
    let text = fs::read(requirements).expect("read requirements.txt");
    let cache = cache_folder();
    let name = Sha256::digest([text, python_version()].concat());
    let place = cache.join(format!("checker-{}", scheduler_bridge::mapping::hex(&name[..8])));
    if place.exists() {
        return place;
    }
    fs::create_dir_all(&cache).expect("create the cache folder");
    let beside = tempfile::Builder::new().prefix(".checker-").tempdir_in(&cache).expect("a folder in the cache");
    let (environment, filled) = (beside.path().join("venv"), beside.path().join("packages"));
    run(Command::new("python3").args(["-m", "venv"]).arg(&environment));
    let mut pip = Command::new(environment.join("bin/python"));
    run(pip.args(["-m", "pip", "install", "--quiet", "--target"]).arg(&filled).arg("--requirement").arg(requirements));
    if let Err(error) = fs::rename(&filled, &place) {
        assert!(place.exists(), "cannot move the packages to {}: {error}", place.display());
    }
    place
}

/// Wheels are for one version of Python.
fn python_version() -> Vec<u8> {
    run(Command::new("python3").arg("--version"))
}

fn run(command: &mut Command) -> Vec<u8> {
    let output = command.stdin(Stdio::null()).output().unwrap_or_else(|error| panic!("python3: {error}; {REMEDY}"));
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}: {errors}; {REMEDY}");
    output.stdout
}

pub fn cache_folder() -> PathBuf {
    let set = |name| env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    let caches = set("XDG_CACHE_HOME").or_else(|| set("HOME").map(|home| home.join(".cache")));
    caches.expect("XDG_CACHE_HOME or HOME is set").join("scheduler-bridge")
}
