//! The certificate authority's part of the API: what is trusted, what was issued, and how a root is replaced.

use http::Method;
use serde::{Deserialize, de::DeserializeOwned};
use serde_json::{Value, json};
use x509_parser::parse_x509_certificate;

use super::{ApiClient, Error, JSON};
use crate::moments::Moment;

const BUNDLE: &str = "/ca/bundle";
const STATUS: &str = "/ca/status";
const CERTIFICATES: &str = "/ca/certificates";
const ROTATION: &str = "/ca/rotation";

/// A step of replacing the root.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Step {
    /// Make a new root that everybody trusts beside the old one
    Add,
    /// Sign with the new root; proxies renew at once
    Switch,
    /// Trust the old root no longer
    Drop,
    /// Take the last step back
    #[value(skip)]
    Undo,
}

/// What the authority says of itself.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Status {
    pub trust_domain: String,
    pub roots: Vec<Root>,
    /// `idle`, `added` or `switched`; none where the roots are the user's own files.
    pub step: Option<String>,
    /// Proxies, and those of them that trust just these roots.
    pub connected: usize,
    pub have_bundle: usize,
    /// The first few that do not yet.
    pub waiting_for: Vec<String>,
    /// The first few that show a certificate of another root than the one that signs.
    pub on_other_root: Vec<String>,
    /// Proxies that are away, with a certificate that is still good.
    pub absent: usize,
}

/// A root that is trusted.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Root {
    /// SHA-256 in hex.
    pub fingerprint: String,
    pub subject: String,
    pub not_after: Moment,
    /// Whether certificates are issued under it now.
    pub signer: bool,
}

/// The certificate that a proxy was given last.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Certificate {
    pub proxy: String,
    pub spiffe_id: String,
    pub serial: String,
    pub not_before: Moment,
    pub not_after: Moment,
    /// Fingerprint of the root above it.
    pub signer: String,
}

impl Step {
    fn word(self) -> &'static str {
        match self {
            Self::Add => "add",
            Self::Switch => "switch",
            Self::Drop => "drop",
            Self::Undo => "undo",
        }
    }
}

impl Status {
    /// Fingerprint of the root that signs.
    pub fn signer(&self) -> Option<&Root> {
        self.roots.iter().find(|root| root.signer)
    }
}

impl ApiClient {
    /// The roots to trust, in PEM.
    pub async fn ca_bundle(&self) -> Result<String, Error> {
        let request = self.request(Method::GET, BUNDLE, None)?;
        let response = self.http.send(request).await.map_err(|error| self.failed(error))?;
        if !response.status().is_success() {
            let refusal = super::Answer::read(&self.server(), &response).err();
            return Err(refusal.unwrap_or_else(|| self.unreadable("it has no roots to show")));
        }
        String::from_utf8(response.into_body().into())
            .map_err(|error| self.unreadable(&error.to_string()))
    }

    pub async fn ca_status(&self) -> Result<Status, Error> {
        self.read(self.ca_status_json().await?)
    }

    /// As the authority tells it.
    pub async fn ca_status_json(&self) -> Result<Value, Error> {
        Ok(self.ask(Method::GET, STATUS, None).await?.object)
    }

    pub async fn ca_certificates(&self) -> Result<Vec<Certificate>, Error> {
        self.read(self.ca_certificates_json().await?)
    }

    /// As the authority tells it.
    pub async fn ca_certificates_json(&self) -> Result<Value, Error> {
        Ok(self.ask(Method::GET, CERTIFICATES, None).await?.object)
    }

    /// Takes one step; `force` does not wait for proxies that are not as far.
    pub async fn rotate(&self, step: Step, force: bool) -> Result<Status, Error> {
        let body = json!({"action": step.word(), "force": force});
        self.read(self.ask(Method::POST, ROTATION, Some((JSON, &body))).await?.object)
    }

    /// Trusts what the control plane publishes now, too: its own certificate is about to be of a new root.
    pub async fn learn_roots(&self) -> Result<(), Error> {
        let Some(trust) = self.http.trust() else { return Ok(()) };
        let bundle = self.ca_bundle().await?;
        Ok(trust.also(&self.server(), bundle.as_bytes())?)
    }

    /// The file with roots that this client was given, if the control plane publishes others by now.
    pub async fn outdated_roots(&self) -> Result<Option<std::path::PathBuf>, Error> {
        let Some(trust) = self.http.trust() else { return Ok(None) };
        let bundle = self.ca_bundle().await?;
        let current = trust.is_exactly(&self.server(), bundle.as_bytes())?;
        Ok((!current).then(|| trust.file().to_owned()))
    }

    /// The life of the control plane's own certificate, from when until when; `None` without TLS.
    pub async fn own_certificate(&self) -> Result<Option<(Moment, Moment)>, Error> {
        let shown = self.http.certificate().await.map_err(|error| self.failed(error))?;
        let Some(certificate) = shown else { return Ok(None) };
        let (_, parsed) = parse_x509_certificate(&certificate)
            .map_err(|error| self.unreadable(&format!("its certificate: {error}")))?;
        let moment = |seconds| Moment(u64::try_from(seconds).unwrap_or(0));
        let life = parsed.validity();
        Ok(Some((moment(life.not_before.timestamp()), moment(life.not_after.timestamp()))))
    }

    /// Which version of Leno the control plane is.
    pub async fn version(&self) -> Result<String, Error> {
        let answer = self.ask(Method::GET, "/version", None).await?.object;
        let version = answer.get("gitVersion").and_then(Value::as_str).unwrap_or_default();
        // `v1.32.0+leno-0.1.0`: what it speaks, and what it is.
        Ok(version.rsplit_once("leno-").map_or(version, |(_, own)| own).to_owned())
    }

    fn read<T: DeserializeOwned>(&self, value: Value) -> Result<T, Error> {
        serde_json::from_value(value).map_err(|error| self.unreadable(&error.to_string()))
    }
}
