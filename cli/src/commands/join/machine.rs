//! This machine: its files and its systemd.

use std::{
    fs, io,
    io::Write,
    os::unix::fs::{OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
    process::Command,
};

use super::sidecar::Sidecar;
use crate::error::Error;

/// A file, and what was in it, with which mode, if it was there.
type Before = (PathBuf, Option<(Vec<u8>, u32)>);

const UNIT: &str = include_str!("../../../../deploy/systemd/leno-proxy@.service");
/// Where the unit expects this program.
const PROGRAM: &str = "/usr/local/bin/leno";
const UNIT_PATH: &str = "etc/systemd/system/leno-proxy@.service";
const SETTINGS: &str = "etc/leno";
/// What systemd makes while it runs.
const RUNNING: &str = "run/systemd/system";
/// Folders that services cannot see: the unit says `ProtectHome` and `PrivateTmp`.
const HIDDEN: [&str; 4] = ["/home/", "/root/", "/tmp/", "/var/tmp/"];
const EVERYBODYS: u32 = 0o644;
const ROOTS: u32 = 0o600;
/// The unit's user reads settings below it, whatever the umask of who calls this.
const FOLDER: u32 = 0o755;

/// A machine that systemd runs on, or a folder that will be one.
#[derive(Debug)]
pub struct Machine {
    root: PathBuf,
    is_this: bool,
}

/// A file that is to be there.
#[derive(Debug)]
pub struct File {
    pub path: PathBuf,
    pub contents: String,
    pub mode: u32,
    /// Whether it must not be shown.
    pub secret: bool,
}

/// What became of a file.
#[derive(Debug)]
pub struct Written {
    pub path: PathBuf,
    pub change: Change,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    Created,
    Changed,
    Unchanged,
}

impl Change {
    pub fn word(self) -> &'static str {
        match self {
            Self::Created => "created",
            Self::Changed => "changed",
            Self::Unchanged => "unchanged",
        }
    }
}

impl Written {
    /// Whether anything is different now.
    pub fn any(all: &[Self]) -> bool {
        all.iter().any(|written| written.change != Change::Unchanged)
    }
}

impl Machine {
    /// This machine, or what is below a folder.
    pub fn new(root: Option<&Path>) -> Self {
        Self { root: root.unwrap_or(Path::new("/")).to_owned(), is_this: root.is_none() }
    }

    /// Whether a service can be started here, before anything is written.
    ///
    /// # Errors
    /// What is missing, and what can be done instead.
    pub fn check(&self, sidecar: &Sidecar) -> Result<(), String> {
        if !self.is_this {
            return Ok(());
        }
        if !self.root.join(RUNNING).is_dir() {
            return Err("systemd does not run on this machine: keep the sidecar running by other means, with --foreground".to_owned());
        }
        if !rustix::process::geteuid().is_root() {
            return Err("only root may install a service; use sudo, or --foreground".to_owned());
        }
        let program = program()?;
        if HIDDEN.iter().any(|folder| program.starts_with(folder)) {
            return Err(format!(
                "{program} is in a folder that services cannot see: `install {program} {PROGRAM}`, and call that"
            ));
        }
        self.files(sidecar).map(|_| ())
    }

    /// Everything that `sidecar` needs here.
    ///
    /// # Errors
    /// When nobody can tell where this program is.
    pub fn files(&self, sidecar: &Sidecar) -> Result<Vec<File>, String> {
        let name = &sidecar.name;
        let file = |path: String, contents: String, mode: u32| File {
            path: self.root.join(path),
            contents,
            mode,
            secret: mode == ROOTS,
        };
        // An image's program is where it belongs; on this machine it is whatever was called.
        let program = if self.is_this { program()? } else { PROGRAM.to_owned() };
        let roots = format!("{SETTINGS}/{name}.root.pem");
        Ok(vec![
            file(format!("{SETTINGS}/{name}.token"), format!("{}\n", sidecar.token), ROOTS),
            file(roots.clone(), sidecar.roots.clone(), EVERYBODYS),
            // Where it is when the machine runs, whatever folder it is in now.
            file(
                format!("{SETTINGS}/{name}.env"),
                sidecar.environment(&format!("/{roots}")),
                EVERYBODYS,
            ),
            file(UNIT_PATH.to_owned(), UNIT.replace(PROGRAM, &program), EVERYBODYS),
        ])
    }

    /// Writes what is not there yet; all of it, or none.
    ///
    /// # Errors
    /// Which file cannot be written. What was there before is there again.
    pub fn write(&self, sidecar: &Sidecar) -> Result<Vec<Written>, String> {
        let files = self.files(sidecar)?;
        let mut before: Vec<Before> = Vec::new();
        let mut written = Vec::new();
        for file in files {
            let old = present(&file.path);
            match put(&file.path, file.contents.as_bytes(), file.mode, old.as_ref()) {
                Ok(change) => {
                    before.push((file.path.clone(), old));
                    written.push(Written { path: file.path, change });
                }
                Err(error) => {
                    before.into_iter().rev().for_each(|(path, old)| restore(&path, old));
                    return Err(format!("{}: {error}; nothing was changed", file.path.display()));
                }
            }
        }
        Ok(written)
    }

    /// What systemd is told.
    pub fn commands_to_start(&self, name: &str) -> Vec<Vec<String>> {
        let unit = unit(name);
        let words = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect();
        vec![words(&["daemon-reload"]), words(&["enable", &unit]), words(&["restart", &unit])]
    }

    /// Starts the sidecar, anew where something changed.
    pub fn start(&self, name: &str, changed: bool, out: &mut impl Write) -> Result<(), Error> {
        if !self.is_this {
            writeln!(
                out,
                "{} is not started: `systemctl enable --now {}` does so",
                name,
                unit(name)
            )?;
            return Ok(());
        }
        if !changed
            && systemctl(&["is-active".to_owned(), "--quiet".to_owned(), unit(name)]).is_ok()
        {
            writeln!(out, "{} runs already", unit(name))?;
            return Ok(());
        }
        for command in self.commands_to_start(name) {
            systemctl(&command).map_err(Error::Usage)?;
        }
        writeln!(out, "{} runs; `journalctl -u {0}` has what it says", unit(name))?;
        Ok(())
    }

    pub fn has_joined(&self, name: &str) -> bool {
        self.own_files(name).iter().any(|path| path.exists())
    }

    /// Ends the sidecar, which finishes what is under way, and throws away what it kept.
    pub fn stop(&self, name: &str) -> Result<(), Error> {
        if !self.is_this {
            return Ok(());
        }
        let unit = unit(name);
        systemctl(&["disable", "--now", &unit].map(str::to_owned)).map_err(Error::Usage)?;
        if let Err(error) = systemctl(&["clean", "--what=state", &unit].map(str::to_owned)) {
            eprintln!("warning: what the sidecar kept is still there: {error}");
        }
        Ok(())
    }

    /// Removes its files, and the unit when no other sidecar of this machine needs it.
    ///
    /// # Errors
    /// Which file cannot be removed.
    pub fn remove(&self, name: &str) -> Result<Vec<PathBuf>, String> {
        let mut paths = self.own_files(name);
        if !self.others(name) {
            paths.push(self.root.join(UNIT_PATH));
        }
        let mut removed = Vec::new();
        for path in paths {
            match fs::remove_file(&path) {
                Ok(()) => removed.push(path),
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(format!("{}: {error}", path.display())),
            }
        }
        Ok(removed)
    }

    /// After files are gone: systemd reads again which there are.
    pub fn reload(&self) -> Result<(), Error> {
        if self.is_this {
            systemctl(&["daemon-reload".to_owned()]).map_err(Error::Usage)?;
        }
        Ok(())
    }

    fn own_files(&self, name: &str) -> Vec<PathBuf> {
        let folder = self.root.join(SETTINGS);
        ["token", "root.pem", "env"].map(|end| folder.join(format!("{name}.{end}"))).into()
    }

    fn others(&self, name: &str) -> bool {
        let own = format!("{name}.token");
        let entries = fs::read_dir(self.root.join(SETTINGS)).into_iter().flatten().flatten();
        let mut names = entries.map(|entry| entry.file_name().to_string_lossy().into_owned());
        names.any(|file| file.ends_with(".token") && file != own)
    }
}

fn unit(name: &str) -> String {
    format!("leno-proxy@{name}.service")
}

fn program() -> Result<String, String> {
    let program = std::env::current_exe()
        .map_err(|error| format!("cannot tell where this program is: {error}"))?;
    let text = program.to_string_lossy().into_owned();
    match text.chars().any(|c| c.is_whitespace() || "\"'\\$%".contains(c)) {
        true => Err(format!("{text}: a unit cannot name this path; install it as {PROGRAM}")),
        false => Ok(text),
    }
}

fn present(path: &Path) -> Option<(Vec<u8>, u32)> {
    let mode = fs::metadata(path).ok()?.permissions().mode() & 0o777;
    Some((fs::read(path).ok()?, mode))
}

fn put(
    path: &Path,
    contents: &[u8],
    mode: u32,
    old: Option<&(Vec<u8>, u32)>,
) -> io::Result<Change> {
    if old.is_some_and(|(before, old_mode)| before == contents && *old_mode == mode) {
        return Ok(Change::Unchanged);
    }
    if let Some(folder) = path.parent() {
        make_folder(folder)?;
    }
    // Beside it and then renamed: whoever reads it sees the old one or the new one. Never readable by more than `mode`.
    let beside = path.with_extension("new");
    match fs::remove_file(&beside) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(mode).open(&beside)?;
    let filled = file
        .set_permissions(fs::Permissions::from_mode(mode))
        .and_then(|()| file.write_all(contents))
        .and_then(|()| file.sync_all())
        .and_then(|()| fs::rename(&beside, path));
    if let Err(error) = filled {
        // It may hold a token. What went wrong is said; that this did, too, would hide it.
        fs::remove_file(&beside).ok();
        return Err(error);
    }
    Ok(if old.is_some() { Change::Changed } else { Change::Created })
}

/// Makes a folder and those above it. Those that were there stay as they are: somebody has chosen so.
fn make_folder(folder: &Path) -> io::Result<()> {
    // Above a relative path stands nothing: it is where we are.
    if folder.as_os_str().is_empty() || folder.is_dir() {
        return Ok(());
    }
    if let Some(above) = folder.parent() {
        make_folder(above)?;
    }
    fs::create_dir(folder)?;
    fs::set_permissions(folder, fs::Permissions::from_mode(FOLDER))
}

/// As far as it goes: it is called because writing has just failed.
fn restore(path: &Path, old: Option<(Vec<u8>, u32)>) {
    let done = match &old {
        None => fs::remove_file(path),
        Some((contents, mode)) => put(path, contents, *mode, None).map(|_| ()),
    };
    if let Err(error) = done {
        eprintln!("{}: cannot be put back: {error}", path.display());
    }
}

fn systemctl(words: &[String]) -> Result<(), String> {
    let said = Command::new("systemctl")
        .args(words)
        .output()
        .map_err(|error| format!("systemctl cannot be run: {error}"))?;
    if said.status.success() {
        return Ok(());
    }
    let errors = String::from_utf8_lossy(&said.stderr);
    Err(format!("systemctl {}: {}", words.join(" "), errors.trim()))
}
