//! Flags. Each but the commands is also an environment variable, for containers.

use clap::{Args, Subcommand, ValueEnum};

use crate::plan::{Choice, Interface, Plan, Ports, Range};

/// Lead the connections of this network namespace through the sidecar
#[derive(Args, Clone, Debug)]
pub struct RedirectArgs {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What to do.
#[derive(Clone, Debug, Subcommand)]
pub enum Command {
    /// Install the rules, in place of those that are there
    Install(Box<InstallArgs>),
    /// Remove every rule of ours, also what a run that ended half-way has left
    Remove,
    /// Print the rules of ours that are in force
    Show,
}

/// What is led through the sidecar, and what is not.
#[derive(Args, Clone, Debug)]
pub struct InstallArgs {
    /// Where the sidecar takes what the application sends.
    #[arg(long, env = "LENO_REDIRECT_OUTBOUND_PORT", value_name = "PORT", default_value_t = 15001, value_parser = clap::value_parser!(u16).range(1..))]
    pub outbound_port: u16,
    /// Where the sidecar takes what others send.
    #[arg(long, env = "LENO_REDIRECT_INBOUND_PORT", value_name = "PORT", default_value_t = 15006, value_parser = clap::value_parser!(u16).range(1..))]
    pub inbound_port: u16,
    /// User id as which the sidecar runs; its own connections are left alone. Several with commas.
    #[arg(
        long,
        env = "LENO_REDIRECT_USER",
        value_name = "UID",
        default_value = "1337",
        value_delimiter = ','
    )]
    pub user: Vec<u32>,
    /// Group id of the sidecar, the same way.
    #[arg(
        long,
        env = "LENO_REDIRECT_GROUP",
        value_name = "GID",
        default_value = "1337",
        value_delimiter = ','
    )]
    pub group: Vec<u32>,
    /// User ids whose connections pass the sidecar by.
    #[arg(long, env = "LENO_REDIRECT_EXCLUDE_USERS", value_name = "UID", value_delimiter = ',')]
    pub exclude_users: Vec<u32>,
    /// Group ids whose connections pass the sidecar by.
    #[arg(long, env = "LENO_REDIRECT_EXCLUDE_GROUPS", value_name = "GID", value_delimiter = ',')]
    pub exclude_groups: Vec<u32>,
    /// The application's ports that are reached through the sidecar: `*`, or ports and ranges (8000-8099) with commas;
    /// empty for none.
    #[arg(
        long,
        env = "LENO_REDIRECT_INCLUDE_INBOUND_PORTS",
        value_name = "PORTS",
        default_value = "*"
    )]
    pub include_inbound_ports: String,
    /// The application's ports that are not. Those of the sidecar itself (15020, 15021, 15090) never are.
    #[arg(
        long,
        env = "LENO_REDIRECT_EXCLUDE_INBOUND_PORTS",
        value_name = "PORTS",
        default_value = ""
    )]
    pub exclude_inbound_ports: String,
    /// Ports of others that are reached through the sidecar at any address, beside --include-outbound-ranges.
    #[arg(
        long,
        env = "LENO_REDIRECT_INCLUDE_OUTBOUND_PORTS",
        value_name = "PORTS",
        default_value = ""
    )]
    pub include_outbound_ports: String,
    /// Ports of others that are not, at any address.
    #[arg(
        long,
        env = "LENO_REDIRECT_EXCLUDE_OUTBOUND_PORTS",
        value_name = "PORTS",
        default_value = ""
    )]
    pub exclude_outbound_ports: String,
    /// Addresses that are reached through the sidecar: `*`, or ranges (10.0.0.0/8) with commas; empty for none.
    #[arg(
        long,
        env = "LENO_REDIRECT_INCLUDE_OUTBOUND_RANGES",
        value_name = "RANGES",
        default_value = "*"
    )]
    pub include_outbound_ranges: String,
    /// Addresses that are not.
    #[arg(
        long,
        env = "LENO_REDIRECT_EXCLUDE_OUTBOUND_RANGES",
        value_name = "RANGES",
        default_value = ""
    )]
    pub exclude_outbound_ranges: String,
    /// Interfaces whose connections are left alone, with commas; `veth*` for all that begin so.
    #[arg(
        long,
        env = "LENO_REDIRECT_EXCLUDE_INTERFACES",
        value_name = "NAMES",
        default_value = ""
    )]
    pub exclude_interfaces: String,
    /// Whether IPv6 is led, too; `auto`: if there is an IPv6 address that others can reach.
    #[arg(long, env = "LENO_REDIRECT_IPV6", value_enum, default_value_t = Ipv6::Auto)]
    pub ipv6: Ipv6,
    /// Which tool installs them; `auto`: the first that is there and works.
    #[arg(long, env = "LENO_REDIRECT_BACKEND", value_enum, default_value_t = Backend::Auto)]
    pub backend: Backend,
    /// Print what would be given to the tool, and change nothing.
    #[arg(long)]
    pub dry_run: bool,
}

/// Whether IPv6 is led, too.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Ipv6 {
    /// If an interface other than loopback has an IPv6 address, be it one of its link only.
    Auto,
    /// It is.
    On,
    /// It is not.
    Off,
}

/// Which tool installs the rules.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Backend {
    /// The first that is there and works.
    Auto,
    /// nftables, by `nft`.
    Nft,
    /// iptables, in the variant that this machine has by default.
    Iptables,
    /// iptables on top of nftables.
    IptablesNft,
    /// iptables by itself.
    IptablesLegacy,
}

/// A flag that cannot be read.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("{flag}: {why}")]
pub struct BadFlag {
    /// Which.
    pub flag: &'static str,
    /// What is wrong.
    pub why: String,
}

impl InstallArgs {
    /// What the flags say; IPv6 as far as `has_ipv6` says that there is any.
    ///
    /// # Errors
    /// Names the flag.
    pub fn plan(&self, has_ipv6: bool) -> Result<Plan, BadFlag> {
        let mut exclude_inbound_ports = Plan::default().exclude_inbound_ports;
        for ports in list::<Ports>("--exclude-inbound-ports", &self.exclude_inbound_ports)? {
            if !exclude_inbound_ports.contains(&ports) {
                exclude_inbound_ports.push(ports);
            }
        }
        Ok(Plan {
            outbound_port: self.outbound_port,
            inbound_port: self.inbound_port,
            users: self.user.clone(),
            groups: self.group.clone(),
            exclude_users: self.exclude_users.clone(),
            exclude_groups: self.exclude_groups.clone(),
            include_inbound_ports: choice("--include-inbound-ports", &self.include_inbound_ports)?,
            exclude_inbound_ports,
            include_outbound_ports: list("--include-outbound-ports", &self.include_outbound_ports)?,
            exclude_outbound_ports: list("--exclude-outbound-ports", &self.exclude_outbound_ports)?,
            include_outbound_ranges: choice(
                "--include-outbound-ranges",
                &self.include_outbound_ranges,
            )?,
            exclude_outbound_ranges: list::<Range>(
                "--exclude-outbound-ranges",
                &self.exclude_outbound_ranges,
            )?,
            exclude_interfaces: list::<Interface>(
                "--exclude-interfaces",
                &self.exclude_interfaces,
            )?,
            ipv6: match self.ipv6 {
                Ipv6::Auto => has_ipv6,
                Ipv6::On => true,
                Ipv6::Off => false,
            },
        })
    }
}

fn choice<T: std::str::FromStr<Err = String>>(
    flag: &'static str,
    text: &str,
) -> Result<Choice<T>, BadFlag> {
    match text.trim() {
        "*" => Ok(Choice::All),
        text => list(flag, text).map(Choice::Only),
    }
}

fn list<T: std::str::FromStr<Err = String>>(
    flag: &'static str,
    text: &str,
) -> Result<Vec<T>, BadFlag> {
    let entries = text.split(',').map(str::trim).filter(|entry| !entry.is_empty());
    entries.map(|entry| entry.parse().map_err(|why| BadFlag { flag, why })).collect()
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Cli {
        #[command(flatten)]
        redirect: RedirectArgs,
    }

    fn plan(flags: &str) -> Result<Plan, String> {
        let words = ["redirect", "install"].into_iter().chain(flags.split_whitespace());
        let cli = Cli::try_parse_from(words).map_err(|error| error.to_string())?;
        let Command::Install(args) = cli.redirect.command else { panic!("{flags}") };
        args.plan(true).map_err(|error| error.to_string())
    }

    #[test]
    fn nothing_said_is_the_default() {
        assert_eq!(plan(""), Ok(Plan::default()));
        assert!(!plan("--ipv6 off").unwrap().ipv6);
    }

    #[test]
    fn lists_are_read() {
        let read = plan(
            "--include-inbound-ports 9001,9100-9199 --exclude-inbound-ports 22,15090 \
             --exclude-outbound-ranges 169.254.169.254,fd00::/8 --exclude-interfaces veth*,tun0 \
             --user 0,5 --include-outbound-ranges=",
        );
        let read = read.unwrap();
        let ports = vec![Ports::one(9001), Ports { first: 9100, last: 9199 }];
        assert_eq!(read.include_inbound_ports, Choice::Only(ports));
        assert_eq!(read.exclude_inbound_ports, [15090, 15021, 15020, 22].map(Ports::one));
        assert_eq!(read.exclude_outbound_ranges.len(), 2);
        assert_eq!(read.exclude_interfaces.len(), 2);
        assert_eq!(read.users, [0, 5]);
        assert_eq!(read.include_outbound_ranges, Choice::Only(Vec::new()));
    }

    #[test]
    fn what_cannot_be_read_names_its_flag() {
        for (flags, part) in [
            ("--include-inbound-ports 9001,*", "--include-inbound-ports: `*`"),
            ("--exclude-outbound-ports http", "--exclude-outbound-ports: `http`"),
            ("--exclude-outbound-ranges 10.0.0.0/40", "--exclude-outbound-ranges: `10.0.0.0/40`"),
            ("--exclude-interfaces a/b", "--exclude-interfaces: `a/b`"),
            ("--user root", "--user"),
            ("--outbound-port 0", "--outbound-port"),
        ] {
            let error = plan(flags).unwrap_err();
            assert!(error.contains(part), "{flags}: {error}");
        }
    }
}
