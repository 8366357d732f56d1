//! Subscriptions as they are written on the wire.

use std::net::Ipv6Addr;

use leno_api::{
    model::{Host, ObjectName},
    wire,
};

use crate::plan::Wish;

/// Reads a name subscribed to; `None` where no service can ever have it.
pub fn parse_wish(text: &str) -> Option<Wish> {
    if let Some((namespace, host)) = wire::parse_service_alias(text) {
        // Whatever an application calls ends up here. What is no host has no service.
        ObjectName::parse(&format!("{namespace}/x"))?;
        let asked = || Wish::Host { namespace: namespace.into(), host: host.into() };
        return (is_host(host) || is_ipv6(host)).then(asked);
    }
    ObjectName::parse(text).map(Wish::Name)
}

fn is_host(text: &str) -> bool {
    Host::parse(text).is_ok_and(|host| host.as_str() == text && !host.is_wildcard())
}

/// Services have virtual addresses beside their hosts. Those of IPv4 look like hosts, those of IPv6 do not.
fn is_ipv6(text: &str) -> bool {
    text.parse::<Ipv6Addr>().is_ok_and(|address| address.to_string() == text)
}

/// Writes it as it was read.
pub fn wish_text(wish: &Wish) -> String {
    match wish {
        Wish::Name(name) => name.to_string(),
        Wish::Host { namespace, host } => wire::service_alias(namespace, host),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_it_writes_and_refuses_the_rest() {
        for good in [
            "shop/orders",
            "shop/orders.v2",
            "host/shop/orders",
            "host/shop/a.b.example.com",
            "host/shop/10.96.0.7",
            "host/shop/fd96::7",
        ] {
            assert_eq!(parse_wish(good).map(|wish| wish_text(&wish)).as_deref(), Some(good));
        }
        let long = format!("host/shop/{}", "a".repeat(300));
        for bad in [
            "",
            "*",
            "orders",
            "a/b/c",
            "host/",
            "host/shop/",
            "host/shop/UPPER",
            "host/shop/a:80",
            "host/shop/[fd96::7]",
            "host/shop/FD96::7",
            "host/shop/fd96:0::7",
            "host/Shop/a",
            "host/shop/*.a",
            "shop/\n",
            long.as_str(),
        ] {
            assert_eq!(parse_wish(bad), None, "{bad}");
        }
    }
}
