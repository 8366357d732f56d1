//! What people want forgotten.

use std::sync::Arc;

/// Responses that are to be void, those included that are just being fetched.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Purge {
    /// `shop/products`, all of its ports, or `shop/products:80`. None: of every service.
    pub service: Option<Arc<str>>,
    /// Which of its responses.
    pub what: What,
}

/// Which responses of a service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum What {
    /// Every one.
    All,
    /// Those for one path, with its query as it is kept: `/products/7?lang=en`. All methods, variants and audiences.
    Path(String),
    /// Those whose path with query begins so.
    Prefix(String),
    /// Those that the origin has given this tag. Tags differ by case.
    Tag(String),
}

impl Purge {
    /// Whether responses of `service` may be concerned, which is always with its port: `shop/products:80`.
    pub fn concerns(&self, service: &str) -> bool {
        let Some(named) = self.service.as_deref() else { return true };
        let rest = service.strip_prefix(named);
        // A colon stands before the port only: `shop/product` does not concern `shop/products:80`.
        rest.is_some_and(|rest| rest.is_empty() || rest.starts_with(':'))
    }
}

impl What {
    /// Whether a response for `path` (with its query) and with these tags is one of them.
    pub fn includes(&self, path: &str, tags: &[Box<str>]) -> bool {
        match self {
            Self::All => true,
            Self::Path(one) => one == path,
            Self::Prefix(prefix) => path.starts_with(&**prefix),
            Self::Tag(tag) => tags.iter().any(|known| **known == **tag),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_service_is_named_with_or_without_its_port() {
        for (named, service, expected) in [
            (None, "shop/products:80", true),
            (Some("shop/products"), "shop/products:80", true),
            (Some("shop/products"), "shop/products:8080", true),
            (Some("shop/products:80"), "shop/products:80", true),
            (Some("shop/products:80"), "shop/products:8080", false),
            (Some("shop/product"), "shop/products:80", false),
            (Some("shop/products"), "shop2/products:80", false),
        ] {
            let purge = Purge { service: named.map(Arc::from), what: What::All };
            assert_eq!(purge.concerns(service), expected, "{named:?} {service}");
        }
    }

    #[test]
    fn what_is_void() {
        let tags: [Box<str>; 2] = ["a".into(), "b".into()];
        for (what, expected) in [
            (What::All, true),
            (What::Path("/x?y=1".into()), true),
            (What::Path("/x".into()), false),
            (What::Prefix("/x".into()), true),
            (What::Prefix("/y".into()), false),
            (What::Tag("b".into()), true),
            (What::Tag("B".into()), false),
            (What::Tag(String::new()), false),
        ] {
            assert_eq!(what.includes("/x?y=1", &tags), expected, "{what:?}");
        }
    }
}
