//! The service that a mesh hop means, as the server name (SNI, RFC 6066 section 3) of its TLS handshake:
//! `<port>.<service>.<namespace>.leno`.

use rustls_pki_types::DnsName;

use crate::model::{
    ObjectName,
    name::{check_label, check_subdomain},
};

const SUFFIX: &str = ".leno";

/// `80.orders.shop.leno`. `None` where that is no DNS name (RFC 1035 section 2.3.4): longer than 253 bytes, or a
/// part of it longer than 63.
pub fn server_name(service: &ObjectName, port: u16) -> Option<String> {
    let name = format!("{port}.{}.{}{SUFFIX}", service.name, service.namespace);
    DnsName::try_from(name.as_str()).is_ok().then_some(name)
}

/// Reads what [`server_name`] made: the service and its port. Nothing else is accepted, no other spelling either, so
/// that one destination has one name.
pub fn parse_server_name(name: &str) -> Option<(ObjectName, u16)> {
    let (port, rest) = name.strip_suffix(SUFFIX)?.split_once('.')?;
    let (service, namespace) = rest.rsplit_once('.')?;
    check_label(namespace).ok()?;
    check_subdomain(service).ok()?;
    let port = port.parse::<u16>().ok().filter(|port| *port > 0)?;
    let service = ObjectName::new(namespace, service);
    (server_name(&service, port)? == name).then_some((service, port))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn names_the_port_the_service_and_its_namespace() {
        let orders = ObjectName::new("shop", "orders");
        assert_eq!(server_name(&orders, 80).as_deref(), Some("80.orders.shop.leno"));
        let dotted = ObjectName::new("shop", "orders.v2");
        assert_eq!(parse_server_name("8080.orders.v2.shop.leno"), Some((dotted, 8080)));
    }

    #[test]
    fn refuses_what_is_no_dns_name() {
        let long_label = ObjectName::new("shop", &"a".repeat(64));
        assert_eq!(server_name(&long_label, 80), None);
        let labels = [&*"a".repeat(60), &*"b".repeat(60), &*"c".repeat(60), &*"d".repeat(60)];
        let long = ObjectName::new("a-namespace", &labels.join("."));
        assert_eq!(server_name(&long, 80), None);
    }

    #[test]
    fn refuses_every_other_spelling() {
        for name in [
            "",
            "leno",
            ".leno",
            "80.shop.leno",
            "80..shop.leno",
            "0.orders.shop.leno",
            "080.orders.shop.leno",
            "+80.orders.shop.leno",
            "65536.orders.shop.leno",
            "80.Orders.shop.leno",
            "80.orders.shop.LENO",
            "80.orders.shop.leno.",
            "80.orders.shop.leno.example.com",
            "80.or_ders.shop.leno",
            "80.orders.-shop.leno",
            "80.orders.shop.leno\0",
            "orders.shop.leno",
            "80.*.shop.leno",
        ] {
            assert_eq!(parse_server_name(name), None, "{name}");
        }
    }

    proptest! {
        #[test]
        fn reads_back(
            service in "[a-z0-9]([a-z0-9-]{0,8}[a-z0-9])?(\\.[a-z0-9]{1,63}){0,4}",
            namespace in "[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?",
            port in 1_u16..,
        ) {
            let service = ObjectName::new(&namespace, &service);
            if let Some(name) = server_name(&service, port) {
                prop_assert!(name.len() <= 253);
                prop_assert_eq!(parse_server_name(&name), Some((service, port)));
            }
        }

        #[test]
        fn never_reads_two_spellings_as_one(name in "[0-9+]{1,6}\\.[a-zA-Z0-9.-]{1,20}\\.leno") {
            if let Some((service, port)) = parse_server_name(&name) {
                prop_assert_eq!(server_name(&service, port), Some(name));
            }
        }
    }
}
