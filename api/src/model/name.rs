//! Names and hosts.

use std::{cell::RefCell, fmt, sync::Arc};

use crate::Metadata;

/// Namespace and name of an object; prints as `shop/orders`, which is also its name on the wire.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ObjectName {
    /// DNS label.
    pub namespace: Arc<str>,
    /// DNS subdomain.
    pub name: Arc<str>,
}

impl ObjectName {
    /// From parts that were checked already. Names that follow each other are mostly of one namespace, and share it.
    pub fn new(namespace: &str, name: &str) -> Self {
        thread_local! {
            static LAST: RefCell<Arc<str>> = RefCell::default();
        }
        let namespace = LAST.with_borrow_mut(|last| {
            if **last != *namespace {
                *last = namespace.into();
            }
            last.clone()
        });
        Self { namespace, name: name.into() }
    }

    /// Of an object's metadata (namespace `default` where none is said).
    pub fn of(metadata: &Metadata) -> Self {
        Self::new(metadata.namespace.as_deref().unwrap_or("default"), &metadata.name)
    }

    /// Reads `shop/orders`.
    pub fn parse(text: &str) -> Option<Self> {
        let (namespace, name) = text.split_once('/')?;
        check_label(namespace).ok()?;
        check_subdomain(name).ok()?;
        Some(Self::new(namespace, name))
    }
}

impl fmt::Display for ObjectName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// A host name in lower case, or a wildcard `*.example.com` that stands for one or more labels.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Host {
    text: Arc<str>,
}

impl Host {
    /// Checks RFC 1123 form, with a wildcard allowed as the first label.
    ///
    /// # Errors
    /// Says what a host must look like.
    pub fn parse(text: &str) -> Result<Self, String> {
        let lower = text.to_ascii_lowercase();
        check_subdomain(lower.strip_prefix("*.").unwrap_or(&lower))
            .map_err(|_| format!("`{text}` is not a host name; write `orders`, `orders.shop` or `*.example.com`, without scheme or port"))?;
        Ok(Self { text: lower.into() })
    }

    /// Lower case.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// Whether it begins with `*.`.
    pub fn is_wildcard(&self) -> bool {
        self.text.starts_with("*.")
    }

    /// Whether `host` (lower case, without port) is this name or falls under the wildcard.
    pub fn matches(&self, host: &str) -> bool {
        match self.text.strip_prefix('*') {
            Some(suffix) => host.len() > suffix.len() && host.ends_with(suffix),
            None => *self.text == *host,
        }
    }
}

impl fmt::Display for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// DNS-1123 label: 1 to 63 of `a-z`, `0-9`, `-`, beginning and ending with a letter or digit.
pub(crate) fn check_label(text: &str) -> Result<(), String> {
    let good = text.len() <= 63 && is_dns(text) && !text.contains('.');
    good.then_some(()).ok_or_else(|| {
        format!("`{text}` must be 1 to 63 lower-case letters, digits and `-`, beginning and ending with a letter or digit")
    })
}

/// DNS-1123 subdomain: labels joined by dots, at most 253 characters.
pub(crate) fn check_subdomain(text: &str) -> Result<(), String> {
    let good = text.len() <= 253 && text.split('.').all(is_dns);
    good.then_some(()).ok_or_else(|| {
        format!("`{text}` must be 1 to 253 lower-case letters, digits, `-` and `.`, each part beginning and ending with a letter or digit")
    })
}

fn is_dns(label: &str) -> bool {
    let edge = |byte: Option<&u8>| byte.is_some_and(u8::is_ascii_alphanumeric);
    let bytes = label.as_bytes();
    edge(bytes.first())
        && edge(bytes.last())
        && bytes.iter().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || *b == b'-')
}

/// A label's key (optional DNS prefix, `/`, name) and value, as Kubernetes checks them.
pub(crate) fn check_label_pair(key: &str, value: &str) -> Result<(), String> {
    let qualified = |text: &str, empty_allowed: bool| {
        let edge = |byte: Option<&u8>| byte.is_some_and(u8::is_ascii_alphanumeric);
        let bytes = text.as_bytes();
        (empty_allowed && text.is_empty())
            || (text.len() <= 63
                && edge(bytes.first())
                && edge(bytes.last())
                && bytes.iter().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(b)))
    };
    let (prefix, name) =
        key.split_once('/').map_or((None, key), |(prefix, name)| (Some(prefix), name));
    if !qualified(name, false) || prefix.is_some_and(|prefix| check_subdomain(prefix).is_err()) {
        return Err(format!(
            "`{key}` is not a label name: [prefix/]name of letters, digits, `-`, `_`, `.`"
        ));
    }
    if !qualified(value, true) {
        return Err(format!(
            "`{value}` is not a label value: at most 63 letters, digits, `-`, `_`, `.`"
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_are_compared_as_gateway_api_says() {
        let wildcard = Host::parse("*.Example.com").unwrap();
        assert!(wildcard.matches("a.example.com") && wildcard.matches("a.b.example.com"));
        assert!(!wildcard.matches("example.com") && !wildcard.matches(".example.com.evil"));
        assert!(Host::parse("orders").unwrap().matches("orders"));
        for bad in ["", "a b", "http://a", "a:80", "-a", "a..b", "*", "a.*.b"] {
            assert!(Host::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn object_names_read_back() {
        let name = ObjectName::new("shop", "orders");
        assert_eq!(ObjectName::parse(&name.to_string()), Some(name));
        assert_eq!(ObjectName::parse("orders"), None);
        assert_eq!(ObjectName::parse("a/b/c"), None);
    }
}
