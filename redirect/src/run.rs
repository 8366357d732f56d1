//! Installing, removing and showing the rules of this network namespace.

use std::io::{self, Write};

use rustix::thread::{CapabilitySet, capabilities};

use crate::{
    loopback,
    options::{Backend, BadFlag, Command, InstallArgs, Ipv6},
    plan::{Invalid, Plan},
    tool::{Failure, Tool},
};

/// Addresses of this network namespace: address, index, length of the prefix, scope, flags, interface.
const IPV6_ADDRESSES: &str = "/proc/self/net/if_inet6";

/// Why nothing was done.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A flag cannot be read.
    #[error(transparent)]
    Flag(#[from] BadFlag),
    /// The flags contradict each other.
    #[error(transparent)]
    Invalid(#[from] Invalid),
    /// Not allowed to.
    #[error(
        "the capability NET_ADMIN is missing: run it as root (sudo), or let the container have NET_ADMIN and NET_RAW"
    )]
    NotAllowed,
    /// Somebody else does the same.
    #[error(
        "another mesh redirects these connections already (chain {0}), and nothing was changed: remove its rules first"
    )]
    Rival(&'static str),
    /// No tool is there, or none works.
    #[error("no tool could install the rules: {}{}", joined(failures), hint(failures, *.ipv6))]
    NoTool {
        /// What each said.
        failures: Vec<Failure>,
        /// Whether IPv6 was asked for.
        ipv6: bool,
    },
    /// The rules are not there, or not as they should be.
    #[error("the rules are not in force: {}", joined(.0))]
    NotInForce(Vec<Failure>),
    /// Something of ours may still be there.
    #[error("rules of ours may still be there: {}", joined(.0))]
    NotRemoved(Vec<Failure>),
    /// Loopback does not take its second IPv6 address.
    #[error(
        "the address ::6 cannot be given to loopback ({0}), nothing was changed: switch on IPv6 for lo, or leave IPv6 \
         alone with --ipv6 off"
    )]
    Loopback(io::Error),
    /// Standard output.
    #[error("writing: {0}")]
    Write(#[from] io::Error),
}

fn joined(failures: &[Failure]) -> String {
    failures.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
}

fn hint(failures: &[Failure], ipv6: bool) -> &'static str {
    if failures.iter().all(|failure| matches!(failure, Failure::Missing(_))) {
        return ". Install nftables or iptables";
    }
    let about_ipv6 = |failure: &Failure| match failure {
        Failure::Missing(program) | Failure::Refused { program, .. } => program.starts_with("ip6"),
        _ => false,
    };
    match ipv6 && failures.iter().any(about_ipv6) {
        true => {
            ". Without rules for IPv6 its connections would pass the sidecar by; where that is meant, say --ipv6 off"
        }
        false => {
            ". Does the kernel have NAT (nf_nat; nft_redir and nft_fib_inet, or xt_REDIRECT, xt_owner and xt_addrtype)?"
        }
    }
}

/// Does what `command` says and tells `out` about it.
///
/// # Errors
/// When it cannot be done; what was in force before still is, or nothing is.
pub fn execute(command: &Command, out: &mut impl Write) -> Result<(), Error> {
    match command {
        Command::Install(args) => install(args, out),
        Command::Remove => remove(out),
        Command::Show => show(out),
    }
}

fn install(args: &InstallArgs, out: &mut impl Write) -> Result<(), Error> {
    let plan = args.plan(args.ipv6 == Ipv6::Auto && has_ipv6())?;
    plan.check()?;
    let tools = Tool::of(args.backend);
    if args.dry_run {
        let first = tools.first().copied().unwrap_or(Tool::Nft);
        return Ok(write!(out, "{}", first.rehearse(&plan))?);
    }
    allowed()?;
    if let Some(chain) = Tool::of(Backend::Auto).into_iter().find_map(Tool::rival) {
        return Err(Error::Rival(chain));
    }
    let added = plan.ipv6 && loopback::add().map_err(Error::Loopback)?;
    let tool = match first_that_works(&tools, &plan) {
        Ok(tool) => tool,
        Err(failures) => {
            if added {
                // Best effort: what matters is told below.
                let _ = loopback::remove();
            }
            return Err(Error::NoTool { failures, ipv6: plan.ipv6 });
        }
    };
    // What an earlier run has installed by another tool would decide as well.
    let failures =
        remove_by(Tool::of(Backend::Auto).into_iter().filter(|other| !tool.is_same(*other)));
    if !failures.0.is_empty() {
        return Err(Error::NotRemoved(failures.0));
    }
    let families = if plan.ipv6 { "IPv4 and IPv6" } else { "IPv4" };
    writeln!(
        out,
        "installed by {}: {families}, outbound to port {}, inbound to port {}",
        tool.name(),
        plan.outbound_port,
        plan.inbound_port
    )?;
    Ok(())
}

/// Looks whether what `args` ask for is in force, whichever tool has installed it.
///
/// # Errors
/// What each tool has instead.
pub fn verify(args: &InstallArgs) -> Result<(), Error> {
    let plan = args.plan(args.ipv6 == Ipv6::Auto && has_ipv6())?;
    allowed()?;
    let mut failures = Vec::new();
    for tool in Tool::of(args.backend) {
        match tool.verify(&plan) {
            Ok(()) => return Ok(()),
            Err(failure) => failures.push(failure),
        }
    }
    Err(Error::NotInForce(failures))
}

fn rules_of(shown: &str) -> Vec<&str> {
    shown.lines().filter(|line| !line.starts_with('#')).collect()
}

fn first_that_works(tools: &[Tool], plan: &Plan) -> Result<Tool, Vec<Failure>> {
    let mut failures = Vec::new();
    for tool in tools {
        match tool.install(plan) {
            Ok(()) => return Ok(*tool),
            Err(failure) => failures.push(failure),
        }
    }
    Err(failures)
}

fn remove(out: &mut impl Write) -> Result<(), Error> {
    allowed()?;
    let (mut failures, found) = remove_by(Tool::of(Backend::Auto));
    if let Err(source) = loopback::remove() {
        failures.push(Failure::Run { program: "the address ::6 of loopback".to_owned(), source });
    }
    if !failures.is_empty() {
        return Err(Error::NotRemoved(failures));
    }
    match found.as_slice() {
        [] => writeln!(out, "there were no rules of ours")?,
        tools => writeln!(out, "removed what was installed by {}", tools.join(", "))?,
    }
    Ok(())
}

/// Removes by each of `tools`. What failed, and which tools had something; one that is not there has nothing.
fn remove_by(tools: impl IntoIterator<Item = Tool>) -> (Vec<Failure>, Vec<String>) {
    let (mut failures, mut found) = (Vec::new(), Vec::new());
    for tool in tools {
        match tool.remove() {
            Ok(true) => found.push(tool.name()),
            Ok(false) | Err(Failure::Missing(_)) => {}
            Err(failure) => failures.push(failure),
        }
    }
    (failures, found)
}

fn show(out: &mut impl Write) -> Result<(), Error> {
    allowed()?;
    let mut shown: Vec<String> = Vec::new();
    let mut missing = Vec::new();
    for tool in Tool::of(Backend::Auto) {
        match tool.show() {
            Ok(text) => {
                // Plain `iptables` is one of the variants.
                let known = shown.iter().any(|known| rules_of(known) == rules_of(&text));
                if !text.is_empty() && !known {
                    write!(out, "{text}")?;
                    shown.push(text);
                }
            }
            Err(failure @ Failure::Missing(_)) => missing.push(failure),
            Err(failure) => return Err(Error::NotRemoved(vec![failure])),
        }
    }
    if missing.len() == Tool::of(Backend::Auto).len() {
        return Err(Error::NoTool { failures: missing, ipv6: false });
    }
    if shown.is_empty() {
        writeln!(out, "there are no rules of ours")?;
    }
    Ok(())
}

/// Whether the kernel will listen to us; the tools say so in many words, or in none.
fn allowed() -> Result<(), Error> {
    match capabilities(None) {
        Ok(sets) if !sets.effective.contains(CapabilitySet::NET_ADMIN) => Err(Error::NotAllowed),
        // Whoever cannot be asked is tried.
        Ok(_) | Err(_) => Ok(()),
    }
}

fn has_ipv6() -> bool {
    std::fs::read_to_string(IPV6_ADDRESSES).is_ok_and(|text| has_neighbours(&text))
}

/// Whether anybody else can reach one of the addresses in `text`. Who is on the same link can by its address there, too, and
/// would pass the sidecar by; only loopback's are for this machine alone.
fn has_neighbours(text: &str) -> bool {
    text.lines().any(|line| line.split_ascii_whitespace().nth(5).is_some_and(|name| name != "lo"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_that_others_can_reach_count() {
        let lo = "00000000000000000000000000000001 01 80 10 80       lo\n\
                  00000000000000000000000000000006 01 80 00 82       lo\n";
        let link = "fe80000000000000a8bbccfffe000001 02 40 20 80     eth0\n";
        let global = "fd000000000000000000000000000001 02 40 00 80     eth0\n";
        assert!(!has_neighbours(""));
        assert!(!has_neighbours(lo));
        assert!(has_neighbours(&format!("{lo}{link}")));
        assert!(has_neighbours(&format!("{lo}{global}")));
    }

    #[test]
    fn what_to_do_is_said() {
        let missing = |program: &str| Failure::Missing(program.to_owned());
        let error = |failures, ipv6| Error::NoTool { failures, ipv6 }.to_string();
        let said = error(vec![missing("nft"), missing("iptables-save")], true);
        assert!(
            said.ends_with("iptables-save is not installed. Install nftables or iptables"),
            "{said}"
        );
        let refused =
            || Failure::Refused { program: "ip6tables-restore".to_owned(), said: "no".to_owned() };
        assert!(error(vec![missing("nft"), refused()], true).ends_with("say --ipv6 off"));
        assert!(error(vec![refused()], false).contains("nf_nat"));
    }
}
