//! Rules in the words of `iptables-restore`, and what is to be read out of `iptables-save`. Pure.
//!
//! Rules are written as `iptables-save` prints them.

use std::fmt::Write;

use crate::{
    plan::Plan,
    rules::{Action, Chain, Family, Match, Rule, rules},
};

/// What all names of our chains begin with, also in versions before and after this one.
const PREFIX: &str = "LENO_";
/// Rules of the kernel's own chains that lead into ours.
const HOOKS: [&str; 2] =
    ["-A PREROUTING -p tcp -j LENO_INBOUND", "-A OUTPUT -p tcp -j LENO_OUTPUT"];
/// Chains of others who do the same as we; two cannot.
const RIVALS: [&str; 4] =
    ["ISTIO_OUTPUT", "ISTIO_INBOUND", "PROXY_INIT_REDIRECT", "PROXY_INIT_OUTPUT"];

/// One transaction that replaces whatever of ours is in `saved` (what `iptables-save -t nat` says now) by `plan`.
pub fn install(plan: &Plan, family: Family, saved: &str) -> String {
    let mut text = String::from("*nat\n");
    for chain in Chain::ALL {
        line(&mut text, format_args!(":{} - [0:0]", chain.name()));
    }
    // Of another version.
    let others: Vec<_> = chains(saved).filter(|name| !is_known(name)).collect();
    for name in &others {
        line(&mut text, format_args!(":{name} - [0:0]"));
    }
    deletions(&mut text, saved);
    for name in others {
        line(&mut text, format_args!("-X {name}"));
    }
    for rule in lines(plan, family) {
        line(&mut text, format_args!("{rule}"));
    }
    text.push_str("COMMIT\n");
    text
}

/// One transaction that removes whatever of ours is in `saved`; `None` when there is nothing.
pub fn remove(saved: &str) -> Option<String> {
    let own: Vec<_> = chains(saved).collect();
    if own.is_empty() {
        return None;
    }
    let mut text = String::from("*nat\n");
    // Emptied first: one may lead to another.
    for name in &own {
        line(&mut text, format_args!(":{name} - [0:0]"));
    }
    deletions(&mut text, saved);
    for name in own {
        line(&mut text, format_args!("-X {name}"));
    }
    text.push_str("COMMIT\n");
    Some(text)
}

/// What of ours is in `saved`, for people.
pub fn show(saved: &str) -> String {
    let ours = |line: &&str| {
        line.starts_with('-') && unquoted(line).split(' ').any(|word| word.starts_with(PREFIX))
    };
    saved.lines().filter(ours).map(|line| format!("{line}\n")).collect()
}

/// What is missing in `saved`, or is there beside `plan`, by the number of rules: how a rule is printed differs from one version
/// of the tool to the next.
pub fn difference(plan: &Plan, family: Family, saved: &str) -> Option<String> {
    let wanted = lines(plan, family);
    let count = |lines: &mut dyn Iterator<Item = &str>, name: &str| {
        let start = format!("-A {name} ");
        lines.filter(|line| line.starts_with(&start)).count()
    };
    let counts = Chain::ALL.into_iter().filter_map(|chain| {
        let wanted = count(&mut wanted.iter().map(String::as_str), chain.name());
        let found = count(&mut saved.lines(), chain.name());
        (wanted != found).then(|| format!("{}: {found} rules instead of {wanted}", chain.name()))
    });
    let jumps = jumps(saved).count();
    let hooks = (jumps != HOOKS.len())
        .then(|| format!("{jumps} rules lead into our chains instead of {}", HOOKS.len()));
    let all: Vec<_> = counts.chain(hooks).collect();
    (!all.is_empty()).then(|| all.join("; "))
}

/// Somebody else's rules in `saved` that redirect the same.
pub fn rival(saved: &str) -> Option<&'static str> {
    RIVALS.into_iter().find(|name| saved.lines().any(|line| declares(line, name)))
}

fn declares(line: &str, name: &str) -> bool {
    line.strip_prefix(':').and_then(|rest| rest.split(' ').next()) == Some(name)
}

fn line(text: &mut String, line: std::fmt::Arguments<'_>) {
    // Writing to a string cannot fail.
    let _ = writeln!(text, "{line}");
}

fn is_known(name: &str) -> bool {
    Chain::ALL.into_iter().any(|chain| chain.name() == name)
}

/// Our chains in `saved`.
fn chains(saved: &str) -> impl Iterator<Item = &str> {
    let names = saved.lines().filter_map(|line| line.strip_prefix(':')?.split(' ').next());
    names.filter(|name| name.starts_with(PREFIX))
}

/// Rules of other chains that lead into ours.
fn jumps(saved: &str) -> impl Iterator<Item = &str> {
    saved.lines().filter(|line| {
        let line = unquoted(line);
        let words: Vec<_> = line.split(' ').collect();
        let is_ours =
            |pair: &[&str]| matches!(pair, ["-j" | "-g", name] if name.starts_with(PREFIX));
        matches!(words[..], ["-A", from, ..] if !from.starts_with(PREFIX))
            && words.windows(2).any(is_ours)
    })
}

/// The line without what somebody wrote in quotes, as in a comment: it may look like anything. A backslash keeps the next
/// letter from having a meaning.
fn unquoted(line: &str) -> String {
    let (mut text, mut letters, mut quoted) = (String::new(), line.chars(), false);
    while let Some(letter) = letters.next() {
        match letter {
            '"' => quoted = !quoted,
            '\\' if quoted => drop(letters.next()),
            _ if quoted => {}
            _ => text.push(letter),
        }
    }
    text
}

fn deletions(text: &mut String, saved: &str) {
    for jump in jumps(saved) {
        line(text, format_args!("-D{}", jump.strip_prefix("-A").unwrap_or(jump)));
    }
}

fn lines(plan: &Plan, family: Family) -> Vec<String> {
    let mut lines: Vec<String> = HOOKS.map(str::to_owned).to_vec();
    for (chain, rules) in rules(plan) {
        let rules = rules.iter().filter(|rule| rule.is_for(family));
        lines.extend(rules.map(|rule| format!("-A {}{}", chain.name(), written(rule))));
    }
    lines
}

fn written(rule: &Rule) -> String {
    let mut text = String::new();
    let has_port =
        rule.matches.iter().any(|part| matches!(part, Match::Port(_) | Match::NotPort(_)));
    for part in &rule.matches {
        text.push(' ');
        text.push_str(&part_written(part));
    }
    // The chains see nothing but TCP; the target asks for it all the same.
    let target = match rule.action {
        Action::Return => " -j RETURN".to_owned(),
        Action::Jump(chain) if has_port => format!(" -j {}", chain.name()),
        Action::Jump(chain) => format!(" -p tcp -j {}", chain.name()),
        Action::Redirect(port) => format!(" -p tcp -j REDIRECT --to-ports {port}"),
    };
    text + &target
}

fn part_written(part: &Match) -> String {
    let interface = |name: &crate::plan::Interface| {
        let (name, any) = name.parts();
        format!("{name}{}", if any { "+" } else { "" })
    };
    match part {
        Match::Source(range) => format!("-s {range}"),
        Match::Destination(range) => format!("-d {range}"),
        Match::NotDestination(range) => format!("! -d {range}"),
        Match::NotLocal => "-m addrtype ! --dst-type LOCAL".to_owned(),
        Match::In(name) => format!("-i {}", interface(name)),
        Match::Out(name) => format!("-o {}", interface(name)),
        Match::Loopback => "-o lo".to_owned(),
        Match::Port(ports) if ports.first == ports.last => {
            format!("-p tcp -m tcp --dport {}", ports.first)
        }
        Match::Port(ports) => format!("-p tcp -m tcp --dport {}:{}", ports.first, ports.last),
        Match::NotPort(port) => format!("-p tcp -m tcp ! --dport {port}"),
        Match::User(user) => format!("-m owner --uid-owner {user}"),
        Match::Group(group) => format!("-m owner --gid-owner {group}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FOREIGN: &str = "# Generated\n*nat\n:PREROUTING ACCEPT [0:0]\n:OUTPUT ACCEPT [1:2]\n\
                           :DOCKER - [0:0]\n-A PREROUTING -m addrtype --dst-type LOCAL -j DOCKER\n\
                           -A DOCKER -i docker0 -j RETURN\nCOMMIT\n";

    fn without_frame(text: &str) -> String {
        text.replace("*nat\n", "").replace("COMMIT\n", "")
    }

    #[test]
    fn the_second_time_changes_nothing_but_replaces_all() {
        let plan = Plan::default();
        let first = install(&plan, Family::V4, FOREIGN);
        assert!(!first.contains("DOCKER") && !first.contains("-D "), "{first}");
        let saved = format!("{FOREIGN}{}", without_frame(&first));
        let second = install(&plan, Family::V4, &saved);
        for hook in HOOKS {
            assert_eq!(second.matches(&hook.replacen("-A", "-D", 1)).count(), 1, "{second}");
        }
        assert_eq!(
            second.lines().filter(|line| !line.starts_with("-D")).collect::<Vec<_>>(),
            first.lines().collect::<Vec<_>>()
        );
        assert_eq!(difference(&plan, Family::V4, &saved), None);
    }

    #[test]
    fn removing_leaves_what_is_not_ours() {
        assert_eq!(remove(FOREIGN), None);
        let half = format!(
            "{FOREIGN}:LENO_OUTPUT - [0:0]\n:LENO_OLDER - [0:0]\n-A OUTPUT -p tcp -j LENO_OUTPUT\n\
             -A OUTPUT -p tcp -j LENO_OUTPUT\n-A OUTPUT -g LENO_OLDER\n-A LENO_OUTPUT -j LENO_OLDER\n"
        );
        let text = remove(&half).unwrap();
        let expected = "*nat\n:LENO_OUTPUT - [0:0]\n:LENO_OLDER - [0:0]\n-D OUTPUT -p tcp -j LENO_OUTPUT\n\
                        -D OUTPUT -p tcp -j LENO_OUTPUT\n-D OUTPUT -g LENO_OLDER\n-X LENO_OUTPUT\n\
                        -X LENO_OLDER\nCOMMIT\n";
        assert_eq!(text, expected);
        let repaired = install(&Plan::default(), Family::V4, &half);
        assert!(repaired.contains("-X LENO_OLDER\n"), "{repaired}");
        assert!(!repaired.contains("-X LENO_OUTPUT\n"), "{repaired}");
    }

    #[test]
    fn what_is_not_as_it_should_be_is_said() {
        let plan = Plan::default();
        let text = without_frame(&install(&plan, Family::V6, ""));
        assert_eq!(difference(&plan, Family::V6, &text), None);
        let cut = text.replace("-A OUTPUT -p tcp -j LENO_OUTPUT\n", "");
        assert!(difference(&plan, Family::V6, &cut).unwrap().contains("1 rules lead"), "{cut}");
        let missing = text.replacen("-A LENO_OUTPUT -o lo -j RETURN\n", "", 1);
        let said = difference(&plan, Family::V6, &missing).unwrap();
        assert!(said.starts_with("LENO_OUTPUT: "), "{said}");
    }

    #[test]
    fn what_somebody_wrote_into_a_comment_is_no_rule_of_ours() {
        let comments = "-A OUTPUT -m comment --comment \"see -j LENO_OUTPUT \" -j DOCKER\n\
                        -A OUTPUT -m comment --comment \"a \\\" -g LENO_OUTPUT \" -j DOCKER\n";
        assert_eq!(jumps(comments).count(), 0);
        assert_eq!(show(comments), "");
        let own = "-A OUTPUT -m comment --comment \"to the \\\" mesh\" -j LENO_OUTPUT";
        let text = remove(&format!("{comments}:LENO_OUTPUT - [0:0]\n{own}\n")).unwrap();
        let deleted = own.replacen("-A", "-D", 1);
        assert_eq!(
            text,
            format!("*nat\n:LENO_OUTPUT - [0:0]\n{deleted}\n-X LENO_OUTPUT\nCOMMIT\n")
        );
    }

    #[test]
    fn rivals_are_found_by_their_chains() {
        assert_eq!(rival(FOREIGN), None);
        assert_eq!(rival(":ISTIO_OUTPUT - [0:0]\n"), Some("ISTIO_OUTPUT"));
        assert_eq!(rival("-A OUTPUT -m comment --comment ISTIO_OUTPUT\n"), None);
    }
}
