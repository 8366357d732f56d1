//! Envoy's side of mutual TLS, as a mesh sets it up: TLS 1.3, both certificates, and the SPIFFE ID
//! of the other end compared.

use std::path::Path;

use anyhow::{Context as _, Result};
use serde_json::{Value, json};

use super::EXTENSIONS;
use crate::identity::{Identity, PREFIX};
use crate::peer::{HOST, SERVICE_ACCOUNT};

/// Callers may be anybody of the trust domain.
pub fn downstream(identity: &Identity) -> Result<Value> {
    Ok(socket(&json!({
        "@type": format!("{EXTENSIONS}.transport_sockets.tls.v3.DownstreamTlsContext"),
        "require_client_certificate": true,
        "common_tls_context": context(identity, &json!({"prefix": PREFIX}))?,
    })))
}

/// Only the service is called.
pub fn upstream(identity: &Identity) -> Result<Value> {
    let service = format!("{PREFIX}{SERVICE_ACCOUNT}");
    Ok(socket(&json!({
        "@type": format!("{EXTENSIONS}.transport_sockets.tls.v3.UpstreamTlsContext"),
        "sni": HOST,
        "common_tls_context": context(identity, &json!({"exact": service}))?,
    })))
}

fn socket(context: &Value) -> Value {
    json!({"name": "envoy.transport_sockets.tls", "typed_config": context})
}

fn context(identity: &Identity, who: &Value) -> Result<Value> {
    Ok(json!({
        "alpn_protocols": ["http/1.1"],
        "tls_params": {
            "tls_minimum_protocol_version": "TLSv1_3",
            "tls_maximum_protocol_version": "TLSv1_3",
        },
        "tls_certificates": [{
            "certificate_chain": file(&identity.certificate)?,
            "private_key": file(&identity.key)?,
        }],
        "validation_context": {
            "trusted_ca": file(&identity.roots)?,
            "match_typed_subject_alt_names": [{"san_type": "URI", "matcher": who}],
        },
    }))
}

fn file(path: &Path) -> Result<Value> {
    let path = path.to_str().context("a file whose name is not text")?;
    Ok(json!({"filename": path}))
}
