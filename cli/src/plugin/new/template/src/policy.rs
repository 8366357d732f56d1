//! What is decided.

use crate::configuration::Configuration;

impl Configuration {
    /// Whether a request may go on. `path` is as it came, with its query.
    pub fn allows(&self, path: &str) -> bool {
        let path = path.split('?').next().unwrap_or_default();
        let below = |refused: &String| {
            let rest = path.strip_prefix(refused.trim_end_matches('/'));
            rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
        };
        !self.refused_paths.iter().any(below)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_below_a_refused_path_is_refused() {
        let configuration = Configuration::parse(br#"{"refusedPaths":["/admin"]}"#).unwrap();
        for path in ["/", "/administration", "/a/admin", "/?/admin"] {
            assert!(configuration.allows(path), "{path}");
        }
        for path in ["/admin", "/admin/", "/admin/users", "/admin?a=b"] {
            assert!(!configuration.allows(path), "{path}");
        }
    }
}
