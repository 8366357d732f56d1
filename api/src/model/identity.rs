//! Identities: SPIFFE IDs of the form `spiffe://<trust domain>/ns/<namespace>/sa/<service account>`.

use std::{fmt, sync::Arc};

use crate::model::name::{check_label, check_subdomain};

/// The service account of the control plane in [`crate::SYSTEM_NAMESPACE`].
pub const CONTROL_PLANE_ACCOUNT: &str = "control-plane";
/// SPIFFE-ID section 2.3.
const MAX_ID: usize = 2048;
/// SPIFFE-ID section 2.1.
const MAX_TRUST_DOMAIN: usize = 255;
const SCHEME: &str = "spiffe://";
/// How much of what somebody else sent is worth repeating in a message.
const MAX_SHOWN: usize = 100;

/// The mesh within which identities mean something: `cluster.local`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TrustDomain(Arc<str>);

impl TrustDomain {
    /// Checks SPIFFE-ID section 2.1: 1 to 255 of `a-z`, `0-9`, `.`, `-`, `_`.
    ///
    /// # Errors
    /// Says what a trust domain looks like.
    pub fn parse(text: &str) -> Result<Self, String> {
        let allowed =
            |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b".-_".contains(&byte);
        if text.is_empty() || text.len() > MAX_TRUST_DOMAIN || !text.bytes().all(allowed) {
            return Err(format!(
                "`{}` is not a trust domain: 1 to {MAX_TRUST_DOMAIN} lower-case letters, digits, `.`, `-` and `_`",
                shown(text)
            ));
        }
        Ok(Self(text.into()))
    }

    /// `cluster.local`.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// `cluster.local`, as every mesh is called unless it is told otherwise.
impl Default for TrustDomain {
    fn default() -> Self {
        Self("cluster.local".into())
    }
}

impl fmt::Display for TrustDomain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Who a workload is; prints as its URI.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SpiffeId {
    /// Within which it means something.
    pub trust_domain: TrustDomain,
    /// Of the workload.
    pub namespace: Arc<str>,
    /// Of the workload.
    pub service_account: Arc<str>,
}

impl SpiffeId {
    /// From parts that were checked already.
    pub fn new(trust_domain: &TrustDomain, namespace: &str, service_account: &str) -> Self {
        Self {
            trust_domain: trust_domain.clone(),
            namespace: namespace.into(),
            service_account: service_account.into(),
        }
    }

    /// Reads a URI. Only the one canonical spelling is accepted (SPIFFE-ID section 2: no query, fragment, user,
    /// port, percent-encoding, empty or dot segments), so that equal identities are equal bytes.
    ///
    /// # Errors
    /// Says which part is wrong.
    pub fn parse(uri: &str) -> Result<Self, String> {
        if uri.len() > MAX_ID {
            return Err(format!("an identity has at most {MAX_ID} bytes, not {}", uri.len()));
        }
        let wrong =
            |what: &str| format!("`{}` is not an identity of a workload: {what}", shown(uri));
        let form = "it must be spiffe://<trust domain>/ns/<namespace>/sa/<service account>";
        let rest = uri.strip_prefix(SCHEME).ok_or_else(|| wrong(form))?;
        let parts: Vec<_> = rest.splitn(6, '/').collect();
        let [trust_domain, "ns", namespace, "sa", service_account] = parts[..] else {
            return Err(wrong(form));
        };
        let trust_domain = TrustDomain::parse(trust_domain).map_err(|_| {
            wrong("the trust domain has 1 to 255 lower-case letters, digits, `.`, `-` and `_`")
        })?;
        check_label(namespace).map_err(|_| wrong("the namespace is not a DNS label"))?;
        check_subdomain(service_account)
            .map_err(|_| wrong("the service account is not a DNS name"))?;
        Ok(Self::new(&trust_domain, namespace, service_account))
    }

    /// Without `spiffe://`, as policies and headers have it: `cluster.local/ns/shop/sa/orders`.
    pub fn principal(&self) -> String {
        format!("{}/ns/{}/sa/{}", self.trust_domain, self.namespace, self.service_account)
    }
}

impl fmt::Display for SpiffeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{SCHEME}{}/ns/{}/sa/{}", self.trust_domain, self.namespace, self.service_account)
    }
}

/// A part of `text` that cannot break a line of a log.
fn shown(text: &str) -> String {
    let short: String = text.chars().take(MAX_SHOWN).collect();
    short.escape_debug().to_string()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn reads_and_prints_an_identity() {
        let uri = "spiffe://cluster.local/ns/shop/sa/orders";
        let id = SpiffeId::parse(uri).unwrap();
        assert_eq!(id.to_string(), uri);
        assert_eq!(id.principal(), "cluster.local/ns/shop/sa/orders");
        assert_eq!((&*id.namespace, &*id.service_account), ("shop", "orders"));
        assert_eq!(id.trust_domain.as_str(), "cluster.local");
    }

    #[test]
    fn refuses_every_other_spelling() {
        let long = format!("spiffe://{}/ns/shop/sa/orders", "a".repeat(256));
        for uri in [
            "",
            "spiffe://",
            "cluster.local/ns/shop/sa/orders",
            "https://cluster.local/ns/shop/sa/orders",
            "SPIFFE://cluster.local/ns/shop/sa/orders",
            "spiffe:///ns/shop/sa/orders",
            "spiffe://Cluster.local/ns/shop/sa/orders",
            "spiffe://cluster.local:80/ns/shop/sa/orders",
            "spiffe://user@cluster.local/ns/shop/sa/orders",
            "spiffe://cluster.local/ns/Shop/sa/orders",
            "spiffe://cluster.local/ns/shop/sa/Orders",
            "spiffe://cluster.local/NS/shop/sa/orders",
            "spiffe://cluster.local/ns/shop/sa/orders/",
            "spiffe://cluster.local/ns/shop/sa/orders/x",
            "spiffe://cluster.local/ns/shop/sa/",
            "spiffe://cluster.local/ns//sa/orders",
            "spiffe://cluster.local//ns/shop/sa/orders",
            "spiffe://cluster.local/ns/shop/sa",
            "spiffe://cluster.local/ns/../sa/orders",
            "spiffe://cluster.local/ns/shop/../shop/sa/orders",
            "spiffe://cluster.local/ns/shop/sa/..",
            "spiffe://cluster.local/ns/shop/sa/.",
            "spiffe://cluster.local/ns/shop/sa/orders\0",
            "spiffe://cluster.local/ns/shop\0/sa/orders",
            "spiffe://cluster.local\0/ns/shop/sa/orders",
            "spiffe://cluster.local/ns/sh%6fp/sa/orders",
            "spiffe://cluster.local/ns/shop/sa/orders%2f..",
            "spiffe://cluster.local/ns/shop/sa/orders?x=y",
            "spiffe://cluster.local/ns/shop/sa/orders#x",
            "spiffe://cluster.local/ns/shop/sa/örders",
            " spiffe://cluster.local/ns/shop/sa/orders",
            &long,
        ] {
            assert!(SpiffeId::parse(uri).is_err(), "{uri}");
        }
    }

    #[test]
    fn messages_stay_short_and_on_one_line() {
        let long = format!("spiffe://a\nb\0{}", "x".repeat(1900));
        let message = SpiffeId::parse(&long).unwrap_err();
        assert!(message.len() < 300, "{message}");
        assert!(!message.chars().any(char::is_control), "{message:?}");
        assert!(SpiffeId::parse(&"x".repeat(1 << 20)).unwrap_err().len() < 100);
    }

    proptest! {
        #[test]
        fn reads_back(
            trust_domain in "[a-z0-9._-]{1,255}",
            namespace in "[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?",
            account in "[a-z0-9]([a-z0-9-]{0,20}[a-z0-9])?(\\.[a-z0-9]{1,9}){0,3}",
        ) {
            let id = SpiffeId::new(&TrustDomain::parse(&trust_domain).unwrap(), &namespace, &account);
            prop_assert_eq!(SpiffeId::parse(&id.to_string()), Ok(id));
        }

        #[test]
        fn accepts_one_spelling_only(uri in "(spiffe://)?[a-zA-Z0-9/.%:@?#\0-]{0,60}") {
            if let Ok(id) = SpiffeId::parse(&uri) {
                prop_assert_eq!(id.to_string(), uri);
            }
        }
    }
}
