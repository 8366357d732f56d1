//! Rules in the words of `nft`: a table of our own for IPv4 and IPv6. Pure.

use std::fmt::Write;

use crate::{
    plan::{Interface, Plan, Range},
    rules::{Action, Chain, Family, Match, Rule, rules},
};

/// The table's name, as `nft` lists it.
pub const TABLE: &str = "table inet leno";

/// One transaction that replaces our table, or makes it.
pub fn install(plan: &Plan) -> String {
    let mut text = remove();
    let mut put = |line: std::fmt::Arguments<'_>| {
        // Writing to a string cannot fail.
        let _ = writeln!(text, "{line}");
    };
    put(format_args!("{TABLE} {{"));
    let family = if plan.ipv6 { "" } else { "meta nfproto ipv4 " };
    for (hook, chain) in [("prerouting", Chain::Inbound), ("output", Chain::Output)] {
        put(format_args!("\tchain {hook} {{"));
        // The priority of destination NAT; old versions have no name for it at this hook.
        put(format_args!("\t\ttype nat hook {hook} priority -100; policy accept;"));
        put(format_args!("\t\t{family}meta l4proto tcp jump {}", name(chain)));
        put(format_args!("\t}}"));
    }
    for (chain, rules) in rules(plan) {
        put(format_args!("\tchain {} {{", name(chain)));
        for rule in rules.iter().filter(|rule| holds(plan, rule)) {
            put(format_args!("\t\t{}", written(rule)));
        }
        put(format_args!("\t}}"));
    }
    put(format_args!("}}"));
    text
}

/// One transaction that removes our table, whether it is there or not.
pub fn remove() -> String {
    format!("add {TABLE}\ndelete {TABLE}\n")
}

/// What is missing in `listed` (what `nft list table inet leno` says), or is there beside `plan`, by the number of rules.
pub fn difference(plan: &Plan, listed: &str) -> Option<String> {
    let (wanted, found) = (counts(&install(plan)), counts(listed));
    let differ = wanted.iter().filter_map(|(chain, wanted)| {
        let found = found.iter().find(|(name, _)| name == chain).map_or(0, |(_, found)| *found);
        (*wanted != found).then(|| format!("{chain}: {found} rules instead of {wanted}"))
    });
    let all: Vec<_> = differ.collect();
    (!all.is_empty()).then(|| all.join("; "))
}

/// Chains in `text`, with how many rules each has.
fn counts(text: &str) -> Vec<(String, usize)> {
    let mut counts: Vec<(String, usize)> = Vec::new();
    let mut inside = false;
    for line in text.lines().map(str::trim) {
        if let Some(name) = line.strip_prefix("chain ").and_then(|rest| rest.strip_suffix(" {")) {
            counts.push((name.to_owned(), 0));
            inside = true;
        } else if line == "}" {
            inside = false;
        } else if inside
            && !line.is_empty()
            && !line.starts_with("type ")
            && let Some((_, count)) = counts.last_mut()
        {
            *count += 1;
        }
    }
    counts
}

fn name(chain: Chain) -> String {
    chain.name().to_ascii_lowercase()
}

fn holds(plan: &Plan, rule: &Rule) -> bool {
    plan.ipv6 || rule.is_for(Family::V4)
}

fn written(rule: &Rule) -> String {
    let parts: String =
        rule.matches.iter().map(|part| format!("{} ", part_written(part))).collect();
    match rule.action {
        Action::Return => format!("{parts}return"),
        Action::Jump(chain) => format!("{parts}jump {}", name(chain)),
        Action::Redirect(port) => format!("{parts}meta l4proto tcp redirect to :{port}"),
    }
}

fn part_written(part: &Match) -> String {
    let interface = |name: &Interface| {
        let (name, any) = name.parts();
        format!("\"{name}{}\"", if any { "*" } else { "" })
    };
    match part {
        Match::Source(range) => format!("{} saddr {}", protocol(range), address(range)),
        Match::Destination(range) => format!("{} daddr {}", protocol(range), address(range)),
        Match::NotDestination(range) => format!("{} daddr != {}", protocol(range), address(range)),
        Match::NotLocal => "fib daddr type != local".to_owned(),
        Match::In(name) => format!("iifname {}", interface(name)),
        Match::Out(name) => format!("oifname {}", interface(name)),
        Match::Loopback => "oifname \"lo\"".to_owned(),
        Match::Port(ports) => format!("tcp dport {ports}"),
        Match::NotPort(port) => format!("tcp dport != {port}"),
        Match::User(user) => format!("meta skuid {user}"),
        Match::Group(group) => format!("meta skgid {group}"),
    }
}

fn protocol(range: &Range) -> &'static str {
    if range.address.is_ipv4() { "ip" } else { "ip6" }
}

fn address(range: &Range) -> String {
    match *range == Range::one(range.address) {
        true => range.address.to_string(),
        false => range.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_as_it_should_be_is_said() {
        let plan = Plan::default();
        let text = install(&plan);
        assert_eq!(difference(&plan, &text), None);
        let cut = text.replacen("\t\toifname \"lo\" return\n", "", 1);
        assert!(difference(&plan, &cut).unwrap().starts_with("leno_output: "));
        assert!(difference(&plan, "").unwrap().contains("prerouting: 0 rules instead of 1"));
        let narrow = Plan { ipv6: false, ..plan };
        assert!(difference(&narrow, &text).is_some());
        assert!(!install(&narrow).contains("ip6"));
    }
}
