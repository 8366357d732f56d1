//! `TrustBundle`.

use std::sync::Arc;

use rustls_pki_types::pem::{PemObject, SectionKind};
use serde_json::Value;

use crate::{
    Metadata, Path, SYSTEM_NAMESPACE,
    invalid::Problems,
    model::{Model, ObjectName, http_route::check_count, identity::TrustDomain},
    resource::read,
    spec::trust_bundle as raw,
};

/// Name of the one bundle there is.
pub const MESH: &str = "mesh";
/// A rotation needs two; more than a few roots would mean that rotations are never finished.
const MAX_ROOTS: usize = 8;
/// Of one root as PEM; those of public authorities have about 2 KiB.
const MAX_PEM: usize = 16 * 1024;
/// SHA-256 in hexadecimal.
const FINGERPRINT_LENGTH: usize = 64;

/// What the mesh trusts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TrustBundle {
    /// Always `leno-system/mesh`.
    pub name: ObjectName,
    /// Within which identities mean something.
    pub trust_domain: TrustDomain,
    /// DER; 1 to 8, all different.
    pub roots: Vec<Arc<[u8]>>,
    /// Lower-case hexadecimal SHA-256 of the root under which certificates are issued now.
    pub signer: String,
}

pub(crate) fn parse(spec: Value, metadata: &Metadata, problems: &mut Problems) -> Option<Model> {
    let at = Path::root("spec");
    let raw: raw::TrustBundleSpec = read(&at, spec, problems)?;
    let name = ObjectName::of(metadata);
    if name != ObjectName::new(SYSTEM_NAMESPACE, MESH) {
        problems.add(
            "metadata.name",
            format!("there is one trust bundle only, {SYSTEM_NAMESPACE}/{MESH}, not {name}"),
        );
    }
    let trust_domain =
        problems.take(&at.field("trustDomain"), TrustDomain::parse(&raw.trust_domain));
    let roots = parse_roots(&at.field("roots"), &raw.roots, problems);
    let lower_hex = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
    if raw.signer.len() != FINGERPRINT_LENGTH || !raw.signer.bytes().all(lower_hex) {
        problems.add(
            at.field("signer"),
            "must be the SHA-256 of a root in 64 lower-case hexadecimal digits",
        );
    }
    Some(Model::TrustBundle(
        TrustBundle { name, trust_domain: trust_domain?, roots, signer: raw.signer }.into(),
    ))
}

fn parse_roots(at: &Path<'_>, raw: &[String], problems: &mut Problems) -> Vec<Arc<[u8]>> {
    check_count(at, raw.len(), 1, MAX_ROOTS, problems);
    let mut roots: Vec<Arc<[u8]>> = Vec::new();
    for (i, pem) in raw.iter().enumerate().take(MAX_ROOTS) {
        let here = at.index(i);
        let Some(root) = problems.take(&here, parse_root(pem)) else { continue };
        if roots.contains(&root) {
            problems.add(here, "stands twice");
        }
        roots.push(root);
    }
    roots
}

/// One certificate and nothing else: a private key pasted along must not travel to every proxy.
fn parse_root(pem: &str) -> Result<Arc<[u8]>, String> {
    if pem.len() > MAX_PEM {
        return Err(format!("has {} bytes; at most {MAX_PEM} are allowed", pem.len()));
    }
    let wanted = "must be exactly one PEM block, -----BEGIN CERTIFICATE-----";
    if pem.matches("-----BEGIN ").count() != 1 {
        return Err(wanted.to_owned());
    }
    let section = <(SectionKind, Vec<u8>)>::from_pem_slice(pem.as_bytes());
    match section {
        Ok((SectionKind::Certificate, der)) if !der.is_empty() => Ok(der.into()),
        Ok(_) => Err(wanted.to_owned()),
        Err(_) => Err(format!("{wanted}; this is not PEM (RFC 7468)")),
    }
}

#[cfg(test)]
mod tests;
