//! What is led through the sidecar, and what is not. Pure.

use std::{
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    str::FromStr,
};

/// Whence the sidecar connects to its own application: the rules let that pass, and the application sees that it was
/// not somebody on this machine. Loopback takes it without further ado.
pub const APPLICATION_SOURCE_V4: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 6);
/// The same for IPv6, where loopback has one address only: this one is added to it.
pub const APPLICATION_SOURCE_V6: Ipv6Addr = Ipv6Addr::new(0, 0, 0, 0, 0, 0, 0, 6);
/// Entries of one list. Every new connection is compared with each of them.
pub const MAX_ENTRIES: usize = 256;
/// Bytes of the name of an interface (`IFNAMSIZ` without its end).
const MAX_INTERFACE: usize = 15;

/// What is led through the sidecar, and what is not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// Where the sidecar takes what the application sends.
    pub outbound_port: u16,
    /// Where the sidecar takes what others send, and where other sidecars connect to.
    pub inbound_port: u16,
    /// As whom the sidecar runs. With `groups` not empty, or its own connections would come back to it.
    pub users: Vec<u32>,
    /// The same by group.
    pub groups: Vec<u32>,
    /// Whose connections pass it by.
    pub exclude_users: Vec<u32>,
    /// The same by group.
    pub exclude_groups: Vec<u32>,
    /// Ports of the application that are reached through the sidecar.
    pub include_inbound_ports: Choice<Ports>,
    /// Those of them that are not.
    pub exclude_inbound_ports: Vec<Ports>,
    /// Destination ports that are reached through the sidecar at any address.
    pub include_outbound_ports: Vec<Ports>,
    /// Destination ports that are not, at any address.
    pub exclude_outbound_ports: Vec<Ports>,
    /// Addresses that are reached through the sidecar.
    pub include_outbound_ranges: Choice<Range>,
    /// Those of them that are not.
    pub exclude_outbound_ranges: Vec<Range>,
    /// Nothing that comes or goes by these is led anywhere.
    pub exclude_interfaces: Vec<Interface>,
    /// Whether IPv6 is led, too.
    pub ipv6: bool,
}

/// Everything, or these.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Choice<T> {
    /// Everything: `*`.
    All,
    /// These; none when empty.
    Only(Vec<T>),
}

/// Ports from the first to the last.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ports {
    /// Never 0.
    pub first: u16,
    /// Never less.
    pub last: u16,
}

/// Addresses that begin with the same bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Range {
    /// The first of them.
    pub address: IpAddr,
    /// How many bits.
    pub bits: u8,
}

/// The name of an interface; a `*` at its end stands for any end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Interface(String);

/// A plan that cannot be meant.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum Invalid {
    /// Both directions at one port.
    #[error(
        "--outbound-port and --inbound-port are both {0}: the sidecar could not tell one direction from the other"
    )]
    SamePort(u16),
    /// Nothing tells the sidecar's own connections.
    #[error(
        "neither --user nor --group says as whom the sidecar runs: its own connections would be led back to it, round \
         and round"
    )]
    Nobody,
    /// Included and excluded.
    #[error("{what} `{entry}` is included and excluded: leave out one of them")]
    Contradiction {
        /// Ports or ranges of which direction.
        what: &'static str,
        /// Which.
        entry: String,
    },
    /// Too many.
    #[error(
        "{flag} has {count} entries; at most {MAX_ENTRIES}, as every new connection is compared with each of them"
    )]
    TooMany {
        /// Of which flag.
        flag: &'static str,
        /// So many.
        count: usize,
    },
}

impl Default for Plan {
    /// Everything but the sidecar's own ports.
    fn default() -> Self {
        Self {
            outbound_port: 15001,
            inbound_port: 15006,
            users: vec![1337],
            groups: vec![1337],
            exclude_users: Vec::new(),
            exclude_groups: Vec::new(),
            include_inbound_ports: Choice::All,
            exclude_inbound_ports: [15090, 15021, 15020].map(Ports::one).to_vec(),
            include_outbound_ports: Vec::new(),
            exclude_outbound_ports: Vec::new(),
            include_outbound_ranges: Choice::All,
            exclude_outbound_ranges: Vec::new(),
            exclude_interfaces: Vec::new(),
            ipv6: true,
        }
    }
}

impl Plan {
    /// Refuses what contradicts itself.
    ///
    /// # Errors
    /// Names the flags and what is wrong with them.
    pub fn check(&self) -> Result<(), Invalid> {
        if self.outbound_port == self.inbound_port {
            return Err(Invalid::SamePort(self.inbound_port));
        }
        if self.users.is_empty() && self.groups.is_empty() {
            return Err(Invalid::Nobody);
        }
        self.check_lengths()?;
        let inbound = self.include_inbound_ports.listed();
        contradiction("inbound port", inbound, &self.exclude_inbound_ports)?;
        contradiction("outbound port", &self.include_outbound_ports, &self.exclude_outbound_ports)?;
        let ranges = self.include_outbound_ranges.listed();
        contradiction("outbound range", ranges, &self.exclude_outbound_ranges)
    }

    fn check_lengths(&self) -> Result<(), Invalid> {
        let lists = [
            ("--user", self.users.len()),
            ("--group", self.groups.len()),
            ("--exclude-users", self.exclude_users.len()),
            ("--exclude-groups", self.exclude_groups.len()),
            ("--include-inbound-ports", self.include_inbound_ports.listed().len()),
            ("--exclude-inbound-ports", self.exclude_inbound_ports.len()),
            ("--include-outbound-ports", self.include_outbound_ports.len()),
            ("--exclude-outbound-ports", self.exclude_outbound_ports.len()),
            ("--include-outbound-ranges", self.include_outbound_ranges.listed().len()),
            ("--exclude-outbound-ranges", self.exclude_outbound_ranges.len()),
            ("--exclude-interfaces", self.exclude_interfaces.len()),
        ];
        let long = lists.into_iter().find(|(_, count)| *count > MAX_ENTRIES);
        long.map_or(Ok(()), |(flag, count)| Err(Invalid::TooMany { flag, count }))
    }
}

fn contradiction<T: PartialEq + fmt::Display>(
    what: &'static str,
    included: &[T],
    excluded: &[T],
) -> Result<(), Invalid> {
    let both = included.iter().find(|entry| excluded.contains(entry));
    both.map_or(Ok(()), |entry| Err(Invalid::Contradiction { what, entry: entry.to_string() }))
}

impl<T> Choice<T> {
    fn listed(&self) -> &[T] {
        match self {
            Self::All => &[],
            Self::Only(entries) => entries,
        }
    }
}

impl Ports {
    /// One port.
    pub const fn one(port: u16) -> Self {
        Self { first: port, last: port }
    }
}

impl FromStr for Ports {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (first, last) = text.split_once('-').unwrap_or((text, text));
        let port = |part: &str| part.parse::<u16>().ok().filter(|port| *port > 0);
        match (port(first), port(last)) {
            (Some(first), Some(last)) if first <= last => Ok(Self { first, last }),
            _ => Err(format!("`{text}` must be a port, 1 to 65535, or a range like 8000-8099")),
        }
    }
}

impl fmt::Display for Ports {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.first == self.last {
            true => write!(f, "{}", self.first),
            false => write!(f, "{}-{}", self.first, self.last),
        }
    }
}

impl Range {
    /// One address.
    pub const fn one(address: IpAddr) -> Self {
        let bits = if address.is_ipv4() { 32 } else { 128 };
        Self { address, bits }
    }

    fn masked(address: IpAddr, bits: u8) -> Self {
        let address = match address {
            IpAddr::V4(v4) => {
                let mask = u32::MAX.checked_shl(32 - u32::from(bits)).unwrap_or(0);
                Ipv4Addr::from_bits(v4.to_bits() & mask).into()
            }
            IpAddr::V6(v6) => {
                let mask = u128::MAX.checked_shl(128 - u32::from(bits)).unwrap_or(0);
                Ipv6Addr::from_bits(v6.to_bits() & mask).into()
            }
        };
        Self { address, bits }
    }
}

impl FromStr for Range {
    type Err = String;

    /// An address alone is itself; bits beyond the prefix are dropped, as the tools do.
    fn from_str(text: &str) -> Result<Self, String> {
        let invalid =
            || format!("`{text}` must be an address or a range like 10.0.0.0/8 or fd00::/8");
        let (address, bits) = text.split_once('/').map_or((text, None), |(a, b)| (a, Some(b)));
        let address: IpAddr = address.parse().map_err(|_| invalid())?;
        let most = Self::one(address).bits;
        match bits.map(str::parse::<u8>) {
            None => Ok(Self::one(address)),
            Some(Ok(bits)) if bits <= most => Ok(Self::masked(address, bits)),
            Some(_) => Err(invalid()),
        }
    }
}

impl fmt::Display for Range {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.bits)
    }
}

impl Interface {
    /// The name without the star, and whether there was one.
    pub fn parts(&self) -> (&str, bool) {
        self.0.strip_suffix('*').map_or((&self.0, false), |name| (name, true))
    }
}

impl FromStr for Interface {
    type Err = String;

    /// What the kernel allows is more; this is what both tools write without quoting.
    fn from_str(text: &str) -> Result<Self, String> {
        let name = text.strip_suffix('*').unwrap_or(text);
        let fits = |byte: u8| byte.is_ascii_alphanumeric() || b"._-@:".contains(&byte);
        let valid = !name.is_empty() && name.len() <= MAX_INTERFACE && name.bytes().all(fits);
        valid.then(|| Self(text.to_owned())).ok_or_else(|| {
            format!("`{text}` must be the name of an interface, which may end with a *")
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn ports_and_ranges_are_read() {
        assert_eq!("80".parse(), Ok(Ports::one(80)));
        assert_eq!("80-90".parse(), Ok(Ports { first: 80, last: 90 }));
        for bad in ["", "0", "90-80", "80-", "-80", "65536", "1-2-3", " 80", "http", "*"] {
            assert!(bad.parse::<Ports>().is_err(), "{bad}");
        }
        for (text, shown) in [
            ("10.1.2.3/8", "10.0.0.0/8"),
            ("10.1.2.3", "10.1.2.3/32"),
            ("1.2.3.4/0", "0.0.0.0/0"),
            ("fd00:1::2/16", "fd00::/16"),
            ("::1", "::1/128"),
            ("::1/0", "::/0"),
        ] {
            assert_eq!(text.parse::<Range>().unwrap().to_string(), shown);
        }
        for bad in ["", "10.0.0.0/33", "::/129", "10.0.0/8", "10.0.0.0/-1", "a/8", "1.2.3.4/8/8"] {
            assert!(bad.parse::<Range>().is_err(), "{bad}");
        }
    }

    #[test]
    fn interfaces_cannot_smuggle_anything() {
        for good in ["eth0", "veth*", "br-1234.5", "a"] {
            assert!(good.parse::<Interface>().is_ok(), "{good}");
        }
        for bad in ["", "*", "eth0 -j ACCEPT", "a\nb", "a\"b", "e*h", "a;b", "sixteen-letters-x"] {
            assert!(bad.parse::<Interface>().is_err(), "{bad}");
        }
    }

    #[test]
    fn contradictions_are_named() {
        let plan = |change: fn(&mut Plan)| {
            let mut plan = Plan::default();
            change(&mut plan);
            plan.check().map_err(|error| error.to_string())
        };
        assert_eq!(plan(|_| ()), Ok(()));
        let refused = [
            (plan(|plan| plan.inbound_port = 15001), "both 15001"),
            (plan(|plan| (plan.users, plan.groups) = (vec![], vec![])), "--user"),
            (
                plan(|plan| plan.include_inbound_ports = Choice::Only(vec![Ports::one(15090)])),
                "`15090` is included and excluded",
            ),
            (
                plan(|plan| {
                    plan.include_outbound_ranges =
                        Choice::Only(vec!["10.0.0.0/8".parse().unwrap()]);
                    plan.exclude_outbound_ranges = vec!["10.9.9.9/8".parse().unwrap()];
                }),
                "outbound range `10.0.0.0/8`",
            ),
            (plan(|plan| plan.exclude_users = (0..257).collect()), "--exclude-users has 257"),
        ];
        for (result, part) in refused {
            let error = result.unwrap_err();
            assert!(error.contains(part), "{error}");
        }
    }

    proptest! {
        #[test]
        fn ranges_are_stable(bits in 0u8..=128, address: u128) {
            let text = format!("{}/{bits}", Ipv6Addr::from_bits(address));
            let range: Range = text.parse().unwrap();
            prop_assert_eq!(range.to_string().parse(), Ok(range));
        }
    }
}
