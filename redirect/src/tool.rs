//! Running the tools that know the kernel's tables.

use std::{
    ffi::{OsStr, OsString},
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

/// What tools say where the kernel does not know their tables at all, so that there is nothing in them: nft and
/// iptables-nft without nf_tables, iptables-legacy without its NAT, ip6tables without IPv6.
const NO_SUCH_TABLES: [&str; 5] = [
    "Table does not exist",
    "No such file or directory",
    "not supported",
    "cache initialization failed: Invalid argument",
    "rule set generation id: Invalid argument",
];

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
    #[error("{program}: what is in force is not what was asked for: {difference}")]
    Differs {
        /// Which.
        program: String,
        /// How.
        difference: String,
    },
}

impl Failure {
    /// Whether this means that there are no rules at all: the tool is not there, or the kernel does not know its tables.
    fn is_nothing(&self) -> bool {
        match self {
            Self::Missing(_) => true,
            Self::Refused { said, .. } => NO_SUCH_TABLES.iter().any(|words| said.contains(words)),
            Self::Run { .. } | Self::Differs { .. } => false,
        }
    }
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
                let same = self.verify(plan);
                if same.is_err() {
                    self.run("nft", &["-f", "-"], &nft::remove())?;
                }
                same
            }
            Self::Iptables(_) => self.install_by_family(plan),
        }
    }

    /// Whether `plan` is in force.
    pub fn verify(self, plan: &Plan) -> Result<(), Failure> {
        match self {
            Self::Nft => {
                let listed = self.run("nft", &["list", "table", "inet", "leno"], "")?;
                self.same(nft::difference(plan, &listed))
            }
            Self::Iptables(_) => families(plan).try_for_each(|family| {
                let saved = match self.may_have(family) {
                    true => self.saved(family)?,
                    false => String::new(),
                };
                self.same(iptables::difference(plan, family, &saved))
            }),
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

    /// Removes what it has of ours. Says whether there was anything.
    ///
    /// # Errors
    /// It did not, or it cannot say what it has; a family that failed does not keep the other one.
    pub fn remove(self) -> Result<bool, Failure> {
        match self {
            Self::Nft => match self.has_table() {
                Ok(true) => self.run("nft", &["-f", "-"], &nft::remove()).map(|_| true),
                Ok(false) => Ok(false),
                Err(failure) => nothing(failure),
            },
            Self::Iptables(_) => {
                let families = [Family::V4, Family::V6].into_iter().filter(|of| self.may_have(*of));
                let removed: Vec<_> = families.map(|family| self.remove_of(family)).collect();
                removed.into_iter().try_fold(false, |found, removed| Ok(found | removed?))
            }
        }
    }

    fn remove_of(self, family: Family) -> Result<bool, Failure> {
        let saved = match self.saved(family) {
            Ok(saved) => saved,
            Err(failure) => return nothing(failure),
        };
        let Some(text) = iptables::remove(&saved) else { return Ok(false) };
        self.restore(family, &text).map(|()| true)
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

fn nothing(failure: Failure) -> Result<bool, Failure> {
    if failure.is_nothing() { Ok(false) } else { Err(failure) }
}

fn families(plan: &Plan) -> impl Iterator<Item = Family> {
    [Family::V4].into_iter().chain(plan.ipv6.then_some(Family::V6))
}

/// Where programs are found: people's shells often leave out the folders of the system's tools.
fn search_path() -> OsString {
    let path = std::env::var_os("PATH").unwrap_or_default();
    folders(&path)
}

/// Those of `path` and the system's. What is given from the folder where we happen to be (an empty entry means it, too) is
/// not to be run as root.
fn folders(path: &OsStr) -> OsString {
    let system = ["/usr/sbin", "/sbin", "/usr/bin", "/bin"];
    let given = std::env::split_paths(path).filter(|folder| folder.is_absolute());
    let all: Vec<_> = given.chain(system.map(PathBuf::from)).collect();
    // What came out of the variable can be in it again.
    std::env::join_paths(all).unwrap_or_else(|_| system.join(":").into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn programs_come_from_folders_with_a_full_name() {
        let all = folders(OsStr::new(":bin:/opt/a:./b:../c::/opt/d:"));
        assert_eq!(all, "/opt/a:/opt/d:/usr/sbin:/sbin:/usr/bin:/bin");
        assert_eq!(folders(OsStr::new("")), "/usr/sbin:/sbin:/usr/bin:/bin");
    }

    #[test]
    fn only_a_tool_without_tables_has_nothing_to_be_removed() {
        let refused = |said: &str| {
            let failure = Failure::Refused { program: "tool".to_owned(), said: said.to_owned() };
            nothing(failure).map_err(|failure| failure.to_string())
        };
        for said in [
            "iptables-save v1.8.9 (legacy): can't initialize iptables table `nat': Table does not exist (do you need to \
             insmod?)",
            "iptables-save v1.8.9 (nf_tables): Could not fetch rule set generation id: Invalid argument",
            "netlink: Error: cache initialization failed: Invalid argument",
            "Unable to initialize Netlink socket: Protocol not supported",
        ] {
            assert_eq!(refused(said), Ok(false), "{said}");
        }
        assert!(matches!(nothing(Failure::Missing("nft".to_owned())), Ok(false)));
        for said in
            ["Operation not permitted (you must be root)", "exit status: 1", "out of memory"]
        {
            assert_eq!(refused(said), Err(format!("tool: {said}")));
        }
    }
}
