//! The texts that the tools are given, as files. After a wanted change: `LENO_UPDATE_GOLDEN=1 cargo test -p leno-redirect`.

#![expect(clippy::unwrap_used, reason = "a test: what it cannot read fails it")]

use std::{fs, path::Path};

use leno_redirect::{
    Plan, iptables, nft,
    plan::{Choice, Ports},
    rules::Family,
};

/// Everything that can be said, at once.
fn everything() -> Plan {
    Plan {
        outbound_port: 16001,
        inbound_port: 16006,
        users: vec![1337, 1338],
        groups: vec![1337],
        exclude_users: vec![0],
        exclude_groups: vec![42],
        include_inbound_ports: Choice::Only(vec![
            Ports::one(9001),
            Ports { first: 9100, last: 9199 },
        ]),
        exclude_inbound_ports: vec![Ports::one(15090), Ports { first: 9150, last: 9159 }],
        include_outbound_ports: vec![Ports::one(443)],
        exclude_outbound_ports: vec![Ports::one(25), Ports { first: 5000, last: 5999 }],
        include_outbound_ranges: Choice::Only(vec![
            "10.0.0.0/8".parse().unwrap(),
            "fd00::/8".parse().unwrap(),
        ]),
        exclude_outbound_ranges: vec!["10.1.2.3".parse().unwrap(), "fd00:1::/32".parse().unwrap()],
        exclude_interfaces: vec!["tun0".parse().unwrap(), "veth*".parse().unwrap()],
        ipv6: true,
    }
}

#[test]
fn texts_are_as_they_were() {
    let narrow = Plan { ipv6: false, ..Plan::default() };
    for (name, plan) in
        [("default", Plan::default()), ("everything", everything()), ("ipv4", narrow)]
    {
        plan.check().unwrap();
        check(&format!("{name}.nft"), &nft::install(&plan));
        check(&format!("{name}.iptables"), &iptables::install(&plan, Family::V4, ""));
        if plan.ipv6 {
            check(&format!("{name}.ip6tables"), &iptables::install(&plan, Family::V6, ""));
        }
    }
}

fn check(name: &str, text: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name);
    if std::env::var_os("LENO_UPDATE_GOLDEN").is_some() {
        fs::write(&path, text).unwrap();
    }
    let golden = fs::read_to_string(&path).unwrap_or_default();
    assert!(golden == text, "{name} is no longer what it was:\n{text}");
}
