//! Blocks of IP addresses, as policies name them.

use std::{
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use crate::{Path, invalid::Problems, model::pattern::each_value};

/// Bits before the IPv4 address in an IPv4-mapped IPv6 address (RFC 4291 section 2.5.5.2).
const MAPPED_BITS: u8 = 96;

/// The addresses that begin with the same bits. An IPv4-mapped IPv6 address counts as the IPv4 address in it, here
/// and in what is compared, so that a dual-stack socket does not change what a policy says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct IpBlock {
    address: IpAddr,
    prefix: u8,
}

impl IpBlock {
    /// Reads `10.0.0.0/8`, `2001:db8::/32`, or one address. Bits after the prefix are ignored.
    ///
    /// # Errors
    /// Says what a block looks like.
    pub fn parse(text: &str) -> Result<Self, String> {
        let wrong = || {
            format!(
                "`{}` is not a block of IP addresses; write `192.0.2.7`, `10.0.0.0/8` or `2001:db8::/32`",
                text.escape_debug()
            )
        };
        let (address, prefix) =
            text.split_once('/').map_or((text, None), |(address, prefix)| (address, Some(prefix)));
        let address: IpAddr = address.parse().map_err(|_| wrong())?;
        let width: u8 = if address.is_ipv4() { 32 } else { 128 };
        let prefix = match prefix {
            None => width,
            Some(digits) if digits.bytes().all(|byte| byte.is_ascii_digit()) => {
                digits.parse().ok().filter(|bits| *bits <= width).ok_or_else(wrong)?
            }
            Some(_) => return Err(wrong()),
        };
        match (address, address.to_canonical()) {
            (IpAddr::V6(_), v4 @ IpAddr::V4(_)) => {
                let prefix = prefix.checked_sub(MAPPED_BITS).ok_or_else(|| {
                    format!("`{text}`: a block of IPv4-mapped addresses has at least {MAPPED_BITS} bits; write it as IPv4")
                })?;
                Ok(Self { address: masked(v4, prefix), prefix })
            }
            _ => Ok(Self { address: masked(address, prefix), prefix }),
        }
    }

    /// The lowest address in it.
    pub fn address(&self) -> IpAddr {
        self.address
    }

    /// How many bits are fixed.
    pub fn prefix(&self) -> u8 {
        self.prefix
    }

    /// Whether `address` is in it.
    pub fn contains(&self, address: IpAddr) -> bool {
        let address = address.to_canonical();
        address.is_ipv4() == self.address.is_ipv4() && masked(address, self.prefix) == self.address
    }
}

impl fmt::Display for IpBlock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.prefix)
    }
}

/// Blocks, of which one must contain an address and none may.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Blocks {
    /// One must; empty: every address does.
    pub any_of: Vec<IpBlock>,
    /// None may.
    pub none_of: Vec<IpBlock>,
}

impl Blocks {
    /// Whether nothing is asked.
    pub fn is_empty(&self) -> bool {
        self.any_of.is_empty() && self.none_of.is_empty()
    }

    /// Whether `address` is as asked.
    pub fn matches(&self, address: IpAddr) -> bool {
        let holds = |blocks: &[IpBlock]| blocks.iter().any(|block| block.contains(address));
        (self.any_of.is_empty() || holds(&self.any_of)) && !holds(&self.none_of)
    }
}

/// Reads a field of blocks and its opposite.
pub(crate) fn parse_blocks(
    at: &Path<'_>,
    fields: [&str; 2],
    raw: [Option<Vec<String>>; 2],
    problems: &mut Problems,
) -> Blocks {
    let mut list = |field: &str, raw: Option<Vec<String>>| {
        each_value(&at.field(field), raw, problems, IpBlock::parse)
    };
    let [any_field, none_field] = fields;
    let [any, none] = raw;
    Blocks { any_of: list(any_field, any), none_of: list(none_field, none) }
}

fn masked(address: IpAddr, prefix: u8) -> IpAddr {
    match address {
        IpAddr::V4(address) => {
            let mask = u32::MAX.checked_shl(32_u32.saturating_sub(prefix.into())).unwrap_or(0);
            Ipv4Addr::from_bits(address.to_bits() & mask).into()
        }
        IpAddr::V6(address) => {
            let mask = u128::MAX.checked_shl(128_u32.saturating_sub(prefix.into())).unwrap_or(0);
            Ipv6Addr::from_bits(address.to_bits() & mask).into()
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn contains_what_begins_with_its_bits() {
        let rows = [
            ("10.0.0.0/8", "10.255.0.1", true),
            ("10.0.0.0/8", "11.0.0.1", false),
            ("10.1.2.3/8", "10.9.9.9", true),
            ("192.0.2.7", "192.0.2.7", true),
            ("192.0.2.7", "192.0.2.8", false),
            ("0.0.0.0/0", "203.0.113.9", true),
            ("0.0.0.0/0", "2001:db8::1", false),
            ("::/0", "2001:db8::1", true),
            ("::/0", "203.0.113.9", false),
            ("::/0", "::ffff:203.0.113.9", false),
            ("2001:db8::/32", "2001:db8:ffff::1", true),
            ("2001:db8::/32", "2001:db9::1", false),
            ("::1", "::1", true),
            ("::1", "::", false),
            ("10.0.0.0/8", "::ffff:10.1.2.3", true),
            ("10.0.0.0/8", "::10.1.2.3", false),
            ("::ffff:10.0.0.0/104", "10.1.2.3", true),
            ("::ffff:10.0.0.0/104", "::ffff:10.1.2.3", true),
            ("::ffff:10.0.0.0/104", "11.1.2.3", false),
            ("::ffff:0.0.0.0/96", "203.0.113.9", true),
            ("::ffff:192.0.2.7", "192.0.2.7", true),
        ];
        for (block, address, inside) in rows {
            let parsed = IpBlock::parse(block).unwrap();
            assert_eq!(parsed.contains(address.parse().unwrap()), inside, "{address} in {block}");
        }
    }

    #[test]
    fn refuses_what_is_no_block() {
        for text in [
            "",
            "10.0.0.0/",
            "10.0.0.0/33",
            "10.0.0.0/+8",
            "10.0.0.0/-1",
            "10.0.0.0/8/8",
            "10.0.0.0/256",
            "10.0.0",
            "010.0.0.1",
            "10.0.0.1:80",
            "2001:db8::/129",
            "fe80::1%eth0",
            "::ffff:10.0.0.0/95",
            "orders",
            "*",
            " 10.0.0.1",
        ] {
            assert!(IpBlock::parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn one_must_contain_and_none_may() {
        let block = |text: &str| IpBlock::parse(text).unwrap();
        let blocks =
            Blocks { any_of: vec![block("10.0.0.0/8")], none_of: vec![block("10.1.0.0/16")] };
        assert!(blocks.matches("10.2.0.1".parse().unwrap()));
        assert!(!blocks.matches("10.1.0.1".parse().unwrap()));
        assert!(!blocks.matches("::ffff:10.1.0.1".parse().unwrap()));
        assert!(!blocks.matches("11.0.0.1".parse().unwrap()));
        assert!(Blocks::default().matches("11.0.0.1".parse().unwrap()));
    }

    proptest! {
        #[test]
        fn v4_is_inside_exactly_where_the_bits_say(block: u32, other: u32, prefix in 0_u8..=32) {
            let parsed = IpBlock::parse(&format!("{}/{prefix}", Ipv4Addr::from_bits(block))).unwrap();
            let same = block.checked_shr(u32::from(32 - prefix)).unwrap_or(0)
                == other.checked_shr(u32::from(32 - prefix)).unwrap_or(0);
            let v4 = Ipv4Addr::from_bits(other);
            prop_assert_eq!(parsed.contains(v4.into()), same);
            prop_assert_eq!(parsed.contains(v4.to_ipv6_mapped().into()), same);
            prop_assert_eq!(IpBlock::parse(&parsed.to_string()), Ok(parsed));
        }

        #[test]
        fn v6_holds_its_own_lowest_address(bits: u128, prefix in 0_u8..=128) {
            let text = format!("{}/{prefix}", Ipv6Addr::from_bits(bits));
            if let Ok(parsed) = IpBlock::parse(&text) {
                prop_assert!(parsed.contains(Ipv6Addr::from_bits(bits).into()));
                prop_assert!(parsed.contains(parsed.address()));
            }
        }
    }
}
