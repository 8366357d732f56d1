//! Running the tools that know the kernel's tables.

use std::{
    ffi::OsString,
    io::{self, Write},
    path::PathBuf,
    process::{Command, Stdio},
};

use crate::{iptables, nft, options::Backend, plan::Plan, rules::Family};

/// How long iptables waits for another one that holds its lock.
const LOCK_SECONDS: &str = "--wait=10";
/// Tables that iptables by itself keeps in this network namespace. Asking the tool would make one.
const LEGACY_TABLES: &str = "/proc/self/net/ip_tables_names";
const LEGACY_TABLES_V6: &str = "/proc/self/net/ip6_tables_names";

/// A tool that can install rules.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tool {
    /// `nft`.
    Nft,
    /// `iptables` and `ip6tables`, followed by this.
    Iptables(&'static str),
}

/// Why a tool did not do what it was asked to.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// It is not installed.
    #[error("{0} is not installed")]
    Missing(String),
    /// It cannot be run.
    #[error("{program}: {source}")]
    Run {
        /// Which.
        program: String,
        /// Why.
        source: io::Error,
    },
    /// It says no.
    #[error("{program}: {said}")]
    Refused {
        /// Which.
        program: String,
        /// Its own words.
        said: String,
    },
    /// What is in force is not what was asked for.
    #[error("{program} took the rules, but what is in force differs: {difference}")]
    Differs {
        /// Which.
        program: String,
        /// How.
        difference: String,
    },
}

impl Tool {
    /// All of them, in the order in which they are tried.
    const ALL: [Self; 4] =
        [Self::Nft, Self::Iptables(""), Self::Iptables("-nft"), Self::Iptables("-legacy")];

    /// Those that `backend` means.
    pub fn of(backend: Backend) -> Vec<Self> {
        match backend {
            Backend::Auto => Self::ALL.to_vec(),
            Backend::Nft => vec![Self::Nft],
            Backend::Iptables => vec![Self::Iptables("")],
            Backend::IptablesNft => vec![Self::Iptables("-nft")],
            Backend::IptablesLegacy => vec![Self::Iptables("-legacy")],
        }
    }

    /// As people call it.
    pub fn name(self) -> String {
        match self {
            Self::Nft => "nft".to_owned(),
            Self::Iptables(variant) => format!("iptables{variant}"),
        }
    }

    /// Puts `plan` in force in place of what it has of ours, and reads it back. Where that fails, what was in force
    /// still is, or nothing is.
    pub fn install(self, plan: &Plan) -> Result<(), Failure> {
        match self {
            Self::Nft => {
                self.run("nft", &["-f", "-"], &nft::install(plan))?;
                let listed = self.run("nft", &["list", "table", "inet", "leno"], "");
                let same = listed.and_then(|listed| self.same(nft::difference(plan, &listed)));
                if same.is_err() {
                    self.run("nft", &["-f", "-"], &nft::remove())?;
                }
                same
            }
            Self::Iptables(_) => self.install_by_family(plan),
        }
    }

    /// Each family has a transaction of its own; both are in force in the end, or none is.
    fn install_by_family(self, plan: &Plan) -> Result<(), Failure> {
        let mut changed = false;
        let installed = families(plan).try_for_each(|family| {
            let saved = self.saved(family)?;
            self.restore(family, &iptables::install(plan, family, &saved))?;
            changed = true;
            self.same(iptables::difference(plan, family, &self.saved(family)?))
        });
        if installed.is_err() && changed {
            self.remove()?;
        }
        installed
    }

    /// A chain of somebody else who redirects the same. nft lists those that iptables has made on top of nftables, too,
    /// but they are asked for by the tool that made them.
    pub fn rival(self) -> Option<&'static str> {
        let families = [Family::V4, Family::V6].into_iter();
        let asked = families.filter(|family| self != Self::Nft && self.may_have(*family));
        // A tool that is not there or does not work has nothing.
        asked.filter_map(|family| self.saved(family).ok()).find_map(|saved| iptables::rival(&saved))
    }

    /// Whether both keep their rules at the same place: plain `iptables` is one of its two variants, which one differs from
    /// machine to machine.
    pub fn is_same(self, other: Self) -> bool {
        self == other
            || matches!((self.variant(), other.variant()), (Some(one), Some(two)) if one == two)
    }

    fn variant(self) -> Option<&'static str> {
        match self {
            Self::Nft => None,
            Self::Iptables("") => {
                let version = self.run("iptables", &["--version"], "").ok()?;
                Some(if version.contains("nf_tables") { "-nft" } else { "-legacy" })
            }
            Self::Iptables(variant) => Some(variant),
        }
    }

    /// What [`Tool::install`] would give to it, for people.
    pub fn rehearse(self, plan: &Plan) -> String {
        match self {
            Self::Nft => nft::install(plan),
            Self::Iptables(_) => families(plan)
                .map(|family| {
                    let program = self.program(family, "-restore");
                    format!("# {program} --noflush\n{}", iptables::install(plan, family, ""))
                })
                .collect(),
        }
    }

    /// Removes what it has of ours. Says whether there was anything: a tool that cannot say what it has (the kernel does
    /// not know its tables) has nothing.
    pub fn remove(self) -> Result<bool, Failure> {
        match self {
            Self::Nft if !matches!(self.has_table(), Ok(true)) => Ok(false),
            Self::Nft => self.run("nft", &["-f", "-"], &nft::remove()).map(|_| true),
            Self::Iptables(_) => {
                let mut found = false;
                for family in [Family::V4, Family::V6].into_iter().filter(|of| self.may_have(*of)) {
                    let Ok(saved) = self.saved(family) else { continue };
                    if let Some(text) = iptables::remove(&saved) {
                        self.restore(family, &text)?;
                        found = true;
                    }
                }
                Ok(found)
            }
        }
    }

    /// What it has of ours, in its own words; empty when there is nothing.
    pub fn show(self) -> Result<String, Failure> {
        match self {
            Self::Nft if !self.has_table()? => Ok(String::new()),
            Self::Nft => self.run("nft", &["list", "table", "inet", "leno"], ""),
            Self::Iptables(_) => {
                let mut shown = String::new();
                for family in [Family::V4, Family::V6].into_iter().filter(|of| self.may_have(*of)) {
                    let rules = iptables::show(&self.saved(family)?);
                    if !rules.is_empty() {
                        shown += &format!("# {}\n{rules}", self.program(family, "-save"));
                    }
                }
                Ok(shown)
            }
        }
    }

    fn has_table(self) -> Result<bool, Failure> {
        let tables = self.run("nft", &["list", "tables"], "")?;
        Ok(tables.lines().any(|line| line.trim() == nft::TABLE))
    }

    /// Whether it is worth asking. iptables by itself would make the table that it is asked about.
    fn may_have(self, family: Family) -> bool {
        let tables = match family {
            Family::V4 => LEGACY_TABLES,
            Family::V6 => LEGACY_TABLES_V6,
        };
        let is_there = || {
            let names = std::fs::read_to_string(tables).unwrap_or_default();
            names.lines().any(|name| name == "nat")
        };
        self != Self::Iptables("-legacy") || is_there()
    }

    fn same(self, difference: Option<String>) -> Result<(), Failure> {
        let differs = |difference| Failure::Differs { program: self.name(), difference };
        difference.map_or(Ok(()), |difference| Err(differs(difference)))
    }

    fn program(self, family: Family, end: &str) -> String {
        let (start, variant) = match (self, family) {
            (Self::Nft, _) => return "nft".to_owned(),
            (Self::Iptables(variant), Family::V4) => ("iptables", variant),
            (Self::Iptables(variant), Family::V6) => ("ip6tables", variant),
        };
        format!("{start}{variant}{end}")
    }

    fn saved(self, family: Family) -> Result<String, Failure> {
        self.run(&self.program(family, "-save"), &["-t", "nat"], "")
    }

    fn restore(self, family: Family, text: &str) -> Result<(), Failure> {
        let program = self.program(family, "-restore");
        self.run(&program, &["--noflush", LOCK_SECONDS], text).map(drop)
    }

    /// Runs `program` with `input` and returns what it prints.
    fn run(self, program: &str, arguments: &[&str], input: &str) -> Result<String, Failure> {
        let failed = |source: io::Error| match source.kind() {
            io::ErrorKind::NotFound => Failure::Missing(program.to_owned()),
            _ => Failure::Run { program: program.to_owned(), source },
        };
        let mut child = Command::new(program)
            .args(arguments)
            .env("PATH", search_path())
            .env("LC_ALL", "C")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .map_err(failed)?;
        let written = child.stdin.take().map(|mut stdin| stdin.write_all(input.as_bytes()));
        let output = child.wait_with_output().map_err(failed)?;
        if !output.status.success() {
            let said = String::from_utf8_lossy(&output.stderr).trim().replace('\n', "; ");
            let said = if said.is_empty() { output.status.to_string() } else { said };
            return Err(Failure::Refused { program: program.to_owned(), said });
        }
        // It may have said that all is well without having heard everything.
        written.transpose().map_err(failed)?;
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }
}

fn families(plan: &Plan) -> impl Iterator<Item = Family> {
    [Family::V4].into_iter().chain(plan.ipv6.then_some(Family::V6))
}

/// Where programs are found: people's shells often leave out the folders of the system's tools.
fn search_path() -> OsString {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let system = ["/usr/sbin", "/sbin", "/usr/bin", "/bin"].map(PathBuf::from);
    let all: Vec<_> = std::env::split_paths(&path).chain(system).collect();
    // A folder with a colon in its name cannot be in the variable; then there is nothing to be added to either.
    std::env::join_paths(all).unwrap_or(path)
}
