//! `leno token`: who may use the control plane's API and register workloads.
//!
//! Works on the data directory itself, so whoever can read that directory can let others in; a running control plane
//! notices at once.

use std::{io::Write, path::PathBuf, process::ExitCode, time::Duration};

use leno_api::model::duration;
use leno_control_plane::access::{NewToken, Role, TokenFile, TokenInfo};

use crate::{
    error::Error,
    moments::{distance, now},
    table::Table,
};

/// Make, list and revoke tokens of a control plane
#[derive(Debug, clap::Args)]
pub struct TokenArgs {
    /// The control plane's data directory
    #[arg(
        long,
        global = true,
        env = "LENO_DATA_DIR",
        default_value = "leno-data",
        value_name = "DIR"
    )]
    data_dir: PathBuf,

    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, clap::Subcommand)]
enum Action {
    /// Print a new token; it is kept as a digest only, so this is the only time it is seen
    Create(Create),
    /// Say which tokens there are
    List,
    /// Make all tokens of a name worthless
    Revoke {
        /// What they are called
        name: String,
    },
}

#[derive(Debug, clap::Args)]
struct Create {
    /// What to call it
    name: String,

    /// What it is for
    #[arg(long, value_enum)]
    role: RoleName,

    /// The namespace of the workloads that it lets in
    #[arg(short, long, value_name = "NS", required_if_eq("role", "workload"))]
    namespace: Option<String>,

    /// The service account that such a workload's certificate is for [default: `default`]
    #[arg(long, value_name = "SA")]
    service_account: Option<String>,

    /// How long it is good: `1h`, `30m` [default: until it is revoked]
    #[arg(long, value_name = "TIME", value_parser = lifetime)]
    ttl: Option<Duration>,

    /// Good for a sidecar's first certificate, once, and for nothing else; the sidecar renews with that certificate
    #[arg(long)]
    once: bool,
}

#[derive(Clone, Copy, Debug, clap::ValueEnum)]
enum RoleName {
    /// Everything
    Admin,
    /// Reading
    Viewer,
    /// Sidecars: certificates for one service account, registering workloads of one namespace
    Workload,
}

pub fn run(args: &TokenArgs, out: &mut impl Write) -> Result<ExitCode, Error> {
    let failed = |error: &dyn std::fmt::Display| Error::Usage(error.to_string());
    std::fs::create_dir_all(&args.data_dir)
        .map_err(|error| failed(&format_args!("{}: {error}", args.data_dir.display())))?;
    let file = TokenFile::open(&args.data_dir).map_err(|error| failed(&error))?;
    match &args.action {
        Action::Create(create) => {
            writeln!(out, "{}", file.issue(create.token()).map_err(|error| failed(&error))?)?;
        }
        Action::List => {
            let mut table = Table::new(["name", "role", "namespace", "account", "expires", "use"]);
            for token in file.list().map_err(|error| failed(&error))? {
                table.add(row(token, now()));
            }
            table.print(out)?;
        }
        Action::Revoke { name } => match file.revoke(name).map_err(|error| failed(&error))? {
            0 => {
                eprintln!(
                    "error: there is no token called {name}; `leno token list` says which there are"
                );
                return Ok(ExitCode::FAILURE);
            }
            count => writeln!(out, "{count} revoked")?,
        },
    }
    Ok(ExitCode::SUCCESS)
}

impl Create {
    fn token(&self) -> NewToken<'_> {
        NewToken {
            name: &self.name,
            role: match self.role {
                RoleName::Admin => Role::Admin,
                RoleName::Viewer => Role::Viewer,
                RoleName::Workload => Role::Workload,
            },
            namespace: self.namespace.as_deref(),
            service_account: self.service_account.as_deref(),
            expires: self.ttl.map(|ttl| now().saturating_add(ttl.as_secs())),
            once: self.once,
        }
    }
}

/// Whole seconds, at least one: tokens know no finer time.
fn lifetime(text: &str) -> Result<Duration, String> {
    let parsed = duration::parse(text)?;
    match parsed.as_secs() {
        0 => Err(format!("`{text}` is over before anybody could use it; write 1s or more")),
        _ => Ok(parsed),
    }
}

fn row(token: TokenInfo, now: u64) -> Vec<String> {
    let expires = match token.expires {
        None => "never".to_owned(),
        Some(_) if token.is_expired(now) => "expired".to_owned(),
        Some(then) => distance(then, now),
    };
    let uses = match (token.once, token.used) {
        (false, _) => "any number",
        (true, false) => "once",
        (true, true) => "once, used",
    };
    let account = if token.role == Role::Workload { "default" } else { "" };
    vec![
        token.name,
        format!("{:?}", token.role).to_lowercase(),
        token.namespace.unwrap_or_default(),
        token.service_account.unwrap_or_else(|| account.to_owned()),
        expires,
        uses.to_owned(),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lifetime_is_at_least_a_second() {
        assert_eq!(lifetime("1h"), Ok(Duration::from_secs(3600)));
        for wrong in ["0s", "500ms", "1d", ""] {
            assert!(lifetime(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_row_says_whether_a_token_is_still_good() {
        let token = |expires, used| TokenInfo {
            name: "cart".to_owned(),
            role: Role::Workload,
            namespace: Some("shop".to_owned()),
            service_account: Some("cart".to_owned()),
            expires,
            once: true,
            used,
        };
        assert_eq!(
            row(token(Some(1_060), false), 1_000),
            ["cart", "workload", "shop", "cart", "in 60s", "once"]
        );
        assert_eq!(row(token(Some(1_000), false), 1_000)[4..], ["expired", "once"]);
        assert_eq!(row(token(None, true), 1_000)[4..], ["never", "once, used"]);
    }
}
