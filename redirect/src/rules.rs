//! The rules that a plan comes down to, in order, whatever tool installs them. Pure.
//!
//! The order is Istio's, so that what is known of it holds here: exclusions, then the sidecar's own connections, then
//! loopback, then everything else.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::plan::{
    APPLICATION_SOURCE_V4, APPLICATION_SOURCE_V6, Choice, Interface, Plan, Ports, Range,
};

/// Rules of our own. Nobody else's table, chain or rule is touched.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Chain {
    /// What comes from other machines.
    Inbound,
    /// To the sidecar's inbound port.
    InRedirect,
    /// What programs of this machine send.
    Output,
    /// To the sidecar's outbound port.
    Redirect,
}

impl Chain {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Inbound, Self::InRedirect, Self::Output, Self::Redirect];

    /// As iptables has it; nft in lower case.
    pub fn name(self) -> &'static str {
        match self {
            Self::Inbound => "LENO_INBOUND",
            Self::InRedirect => "LENO_IN_REDIRECT",
            Self::Output => "LENO_OUTPUT",
            Self::Redirect => "LENO_REDIRECT",
        }
    }
}

/// IPv4 or IPv6.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

impl Family {
    fn of(address: IpAddr) -> Self {
        if address.is_ipv4() { Self::V4 } else { Self::V6 }
    }
}

/// What a connection must be like; all of it for a rule to hold. In the order in which iptables prints it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Match {
    /// From there.
    Source(Range),
    /// To there.
    Destination(Range),
    /// To anywhere else.
    NotDestination(Range),
    /// To an address that this machine does not have.
    NotLocal,
    /// Comes in by this interface.
    In(Interface),
    /// Goes out by this interface.
    Out(Interface),
    /// Over loopback.
    Loopback,
    /// To these ports.
    Port(Ports),
    /// To any other port.
    NotPort(u16),
    /// Made by a process of this user.
    User(u32),
    /// Of this group.
    Group(u32),
}

/// What is done then.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// It goes where it is going.
    Return,
    /// Another chain decides.
    Jump(Chain),
    /// It goes to this port of this machine.
    Redirect(u16),
}

/// One rule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    /// All of these.
    pub matches: Vec<Match>,
    /// Then this.
    pub action: Action,
}

impl Rule {
    fn new(matches: impl Into<Vec<Match>>, action: Action) -> Self {
        Self { matches: matches.into(), action }
    }

    /// The only family that it can hold for; `None`: for both.
    pub fn family(&self) -> Option<Family> {
        self.matches.iter().find_map(|part| match part {
            Match::Source(range) | Match::Destination(range) | Match::NotDestination(range) => {
                Some(Family::of(range.address))
            }
            _ => None,
        })
    }

    /// Whether it says something about `family`.
    pub fn is_for(&self, family: Family) -> bool {
        self.family().is_none_or(|own| own == family)
    }
}

/// The rules of each chain, in order.
pub fn rules(plan: &Plan) -> Vec<(Chain, Vec<Rule>)> {
    let to = |port| vec![Rule::new([], Action::Redirect(port))];
    vec![
        (Chain::Inbound, inbound(plan)),
        (Chain::InRedirect, to(plan.inbound_port)),
        (Chain::Output, output(plan)),
        (Chain::Redirect, to(plan.outbound_port)),
    ]
}

fn inbound(plan: &Plan) -> Vec<Rule> {
    // What only passes through, on its way between others, is not for the application here: a machine may be a router, and
    // one that runs containers is. Istio's rules, which are for pods only, leave this out.
    let passing = Rule::new([Match::NotLocal], Action::Return);
    let interfaces = plan.exclude_interfaces.iter().map(|name| Match::In(name.clone()));
    // Other sidecars connect to the sidecar itself: nothing to be translated, and nothing to be remembered.
    let own = [Match::Port(Ports::one(plan.inbound_port))];
    let excluded = plan.exclude_inbound_ports.iter().map(|ports| Match::Port(*ports));
    let excluded =
        interfaces.chain(own).chain(excluded).map(|part| Rule::new([part], Action::Return));
    let jump = Action::Jump(Chain::InRedirect);
    let included = match &plan.include_inbound_ports {
        Choice::All => vec![Rule::new([], jump)],
        Choice::Only(ports) => {
            ports.iter().map(|ports| Rule::new([Match::Port(*ports)], jump)).collect()
        }
    };
    [passing].into_iter().chain(excluded).chain(included).collect()
}

fn output(plan: &Plan) -> Vec<Rule> {
    let mut rules = Vec::new();
    let mut pass = |part: Match| rules.push(Rule::new([part], Action::Return));
    plan.exclude_interfaces.iter().for_each(|name| pass(Match::Out(name.clone())));
    plan.exclude_outbound_ports.iter().for_each(|ports| pass(Match::Port(*ports)));
    rules.extend(own_connections(plan));
    let mut pass = |part: Match| rules.push(Rule::new([part], Action::Return));
    // An application that talks to itself does so without us.
    pass(Match::Loopback);
    plan.users.iter().chain(&plan.exclude_users).for_each(|user| pass(Match::User(*user)));
    plan.groups.iter().chain(&plan.exclude_groups).for_each(|group| pass(Match::Group(*group)));
    LOOPBACK.into_iter().for_each(|range| pass(Match::Destination(range)));
    pass(Match::Destination(LINK_LOCAL));
    plan.exclude_outbound_ranges.iter().for_each(|range| pass(Match::Destination(*range)));
    rules.extend(included(plan));
    rules
}

/// What is at these is on this machine, and listens there so that nobody else reaches it.
const LOOPBACK: [Range; 2] = [
    Range { address: IpAddr::V4(Ipv4Addr::new(127, 0, 0, 0)), bits: 8 },
    Range::one(IpAddr::V6(Ipv6Addr::LOCALHOST)),
];
/// Such an address means something together with an interface only, and which that was the kernel does not tell the
/// sidecar: it could not connect there.
const LINK_LOCAL: Range =
    Range { address: IpAddr::V6(Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 0)), bits: 10 };

/// The sidecar's connections over loopback. To its application they pass; to an address of this machine by anything
/// else than the sidecar's own port they are for the inbound side: the application has called its own service.
fn own_connections(plan: &Plan) -> Vec<Rule> {
    let sources = [IpAddr::V4(APPLICATION_SOURCE_V4), IpAddr::V6(APPLICATION_SOURCE_V6)];
    let to_application = sources.into_iter().map(|source| {
        Rule::new([Match::Source(Range::one(source)), Match::Loopback], Action::Return)
    });
    let users = plan.users.iter().map(|user| Match::User(*user));
    let owners = users.chain(plan.groups.iter().map(|group| Match::Group(*group)));
    let to_itself = owners.flat_map(|owner| {
        LOOPBACK.map(|range| {
            let parts = [
                Match::NotDestination(range),
                Match::Loopback,
                Match::NotPort(plan.inbound_port),
                owner.clone(),
            ];
            Rule::new(parts, Action::Jump(Chain::InRedirect))
        })
    });
    to_application.chain(to_itself).collect()
}

fn included(plan: &Plan) -> Vec<Rule> {
    let jump = Action::Jump(Chain::Redirect);
    let ports = plan.include_outbound_ports.iter().map(|ports| Match::Port(*ports));
    let mut rules: Vec<_> = ports.map(|part| Rule::new([part], jump)).collect();
    match &plan.include_outbound_ranges {
        Choice::All => rules.push(Rule::new([], jump)),
        Choice::Only(ranges) => {
            rules.extend(ranges.iter().map(|range| Rule::new([Match::Destination(*range)], jump)))
        }
    }
    rules
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What becomes of a connection in a chain.
    fn decide(plan: &Plan, chain: Chain, holds: impl Fn(&Match) -> bool) -> Action {
        let rules = rules(plan);
        let (_, rules) = rules.iter().find(|(name, _)| *name == chain).unwrap();
        let first = rules.iter().find(|rule| rule.matches.iter().all(&holds));
        first.map_or(Action::Return, |rule| rule.action)
    }

    /// A connection as the kernel sees it.
    #[derive(Clone, Copy)]
    struct Packet {
        source: [u8; 4],
        destination: [u8; 4],
        port: u16,
        loopback: bool,
        user: u32,
    }

    const APPLICATION: Packet = Packet {
        source: [10, 0, 0, 1],
        destination: [10, 0, 0, 2],
        port: 80,
        loopback: false,
        user: 1000,
    };
    const OWN: [u8; 4] = [10, 0, 0, 1];

    fn outbound(plan: &Plan, packet: Packet) -> Action {
        let within = |range: &Range, address: [u8; 4]| {
            Range::from_str_masked(address, range.bits).is_some_and(|masked| masked == *range)
        };
        decide(plan, Chain::Output, |part| match part {
            Match::Source(range) => within(range, packet.source),
            Match::Destination(range) => within(range, packet.destination),
            Match::NotDestination(range) => {
                range.address.is_ipv4() && !within(range, packet.destination)
            }
            Match::In(_) | Match::NotLocal => false,
            Match::Out(name) => name.parts() == ("eth0", false) && !packet.loopback,
            Match::Loopback => packet.loopback,
            Match::Port(ports) => (ports.first..=ports.last).contains(&packet.port),
            Match::NotPort(port) => *port != packet.port,
            Match::User(user) => *user == packet.user,
            Match::Group(_) => false,
        })
    }

    impl Range {
        fn from_str_masked(address: [u8; 4], bits: u8) -> Option<Self> {
            format!("{}/{bits}", std::net::Ipv4Addr::from(address)).parse().ok()
        }
    }

    #[test]
    fn what_leaves_goes_through_the_sidecar_but_for_its_own() {
        let plan = Plan::default();
        let out = Action::Jump(Chain::Redirect);
        let own = Packet { user: 1337, ..APPLICATION };
        let itself = Packet { destination: OWN, loopback: true, ..APPLICATION };
        let local = Packet { destination: [127, 0, 0, 1], loopback: true, ..APPLICATION };
        for (packet, expected, why) in [
            (APPLICATION, out, "the application calls somebody"),
            (own, Action::Return, "the sidecar calls somebody"),
            (itself, Action::Return, "the application calls its own address"),
            (local, Action::Return, "over loopback"),
            (Packet { user: 1337, ..local }, Action::Return, "the sidecar, over loopback"),
            (
                Packet { user: 1337, destination: [127, 0, 0, 53], ..local },
                Action::Return,
                "the sidecar, to another address of loopback",
            ),
            (
                Packet { user: 1337, ..itself },
                Action::Jump(Chain::InRedirect),
                "the application calls its own service",
            ),
            (
                Packet { user: 1337, port: 15006, ..itself },
                Action::Return,
                "the same under mutual TLS",
            ),
            (
                Packet { user: 1337, source: [127, 0, 0, 6], ..itself },
                Action::Return,
                "the sidecar calls its application",
            ),
        ] {
            assert_eq!(outbound(&plan, packet), expected, "{why}");
        }
    }

    #[test]
    fn what_is_on_the_link_passes() {
        let neighbour = Match::Destination("fe80::/10".parse().unwrap());
        let decided = decide(&Plan::default(), Chain::Output, |part| *part == neighbour);
        assert_eq!(decided, Action::Return);
    }

    #[test]
    fn exclusions_come_first() {
        let out = Action::Jump(Chain::Redirect);
        let plan = Plan {
            exclude_outbound_ports: vec![Ports { first: 5000, last: 5999 }],
            exclude_outbound_ranges: vec!["10.0.0.0/24".parse().unwrap()],
            exclude_users: vec![7],
            ..Plan::default()
        };
        let far = Packet { destination: [10, 0, 1, 1], ..APPLICATION };
        assert_eq!(outbound(&plan, far), out);
        for packet in [APPLICATION, Packet { port: 5432, ..far }, Packet { user: 7, ..far }] {
            assert_eq!(outbound(&plan, packet), Action::Return);
        }
        let chosen = Plan {
            include_outbound_ranges: Choice::Only(vec!["10.0.1.0/24".parse().unwrap()]),
            include_outbound_ports: vec![Ports::one(443)],
            ..Plan::default()
        };
        assert_eq!(outbound(&chosen, APPLICATION), Action::Return);
        assert_eq!(outbound(&chosen, far), out);
        assert_eq!(outbound(&chosen, Packet { port: 443, ..APPLICATION }), out);
        let interface = Plan { exclude_interfaces: vec!["eth0".parse().unwrap()], ..plan };
        assert_eq!(outbound(&interface, far), Action::Return);
    }

    #[test]
    fn what_comes_in_goes_through_the_sidecar_but_for_its_own_ports() {
        let at = |plan: &Plan, number: u16| {
            decide(plan, Chain::Inbound, |part| match part {
                Match::Port(ports) => (ports.first..=ports.last).contains(&number),
                _ => false,
            })
        };
        let plan = Plan::default();
        let passing = decide(&plan, Chain::Inbound, |part| *part == Match::NotLocal);
        assert_eq!(passing, Action::Return, "it is on its way to somebody else");
        assert_eq!(at(&plan, 9001), Action::Jump(Chain::InRedirect));
        for own in [15006, 15020, 15021, 15090] {
            assert_eq!(at(&plan, own), Action::Return, "{own}");
        }
        // Not the sidecar's outbound port: from outside it must be met by the inbound side, which refuses it.
        assert_eq!(at(&plan, 15001), Action::Jump(Chain::InRedirect));
        let chosen = Plan { include_inbound_ports: Choice::Only(vec![Ports::one(9001)]), ..plan };
        assert_eq!(at(&chosen, 9001), Action::Jump(Chain::InRedirect));
        assert_eq!(at(&chosen, 9002), Action::Return);
    }
}
