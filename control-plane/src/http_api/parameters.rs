//! What stands in the query. Names that we do not know are left to those who do, as in
//! Kubernetes; values that we cannot read are errors.

use http::HeaderMap;

use super::{Failure, selector::Selector};

const MAX_MANAGER_CHARACTERS: usize = 128;

#[derive(Debug, Default)]
pub(super) struct Parameters {
    pub(super) selector: Selector,
    pub(super) watch: bool,
    pub(super) resource_version: Option<String>,
    pub(super) resource_version_match: Option<String>,
    pub(super) timeout_seconds: Option<u64>,
    pub(super) bookmarks: bool,
    pub(super) initial_events: Option<bool>,
    pub(super) limit: Option<usize>,
    pub(super) continuation: Option<String>,
    pub(super) dry_run: bool,
    pub(super) force: bool,
    pub(super) atomic: bool,
    /// `Object`, `Metadata` or `None`: what table rows carry.
    pub(super) include_object: Option<String>,
    field_manager: Option<String>,
}

impl Parameters {
    pub(super) fn parse(query: Option<&str>) -> Result<Self, Failure> {
        let mut parameters = Self::default();
        for pair in query.unwrap_or_default().split('&').filter(|pair| !pair.is_empty()) {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            parameters.take(name, decode(value)?)?;
        }
        Ok(parameters)
    }

    fn take(&mut self, name: &str, value: String) -> Result<(), Failure> {
        let wrong = |wanted: &str| {
            Failure::bad_request(format!("the parameter {name}={value:?} must be {wanted}"))
        };
        let switch = || match value.as_str() {
            "true" | "1" | "" => Ok(true),
            "false" | "0" => Ok(false),
            _ => Err(wrong("true or false")),
        };
        match name {
            "labelSelector" => self.selector.labels(&value).map_err(Failure::bad_request)?,
            "fieldSelector" => self.selector.fields(&value).map_err(Failure::bad_request)?,
            "watch" => self.watch = switch()?,
            "allowWatchBookmarks" => self.bookmarks = switch()?,
            "sendInitialEvents" => self.initial_events = Some(switch()?),
            "force" => self.force = switch()?,
            "atomic" => self.atomic = switch()?,
            "timeoutSeconds" => {
                self.timeout_seconds =
                    Some(value.parse().map_err(|_| wrong("a number of seconds"))?);
            }
            "limit" => {
                let limit = value.parse().map_err(|_| wrong("a number"))?;
                self.limit = Some(limit).filter(|limit| *limit > 0);
            }
            "resourceVersion" => self.resource_version = given(value),
            "resourceVersionMatch" => self.resource_version_match = given(value),
            "continue" => self.continuation = given(value),
            "includeObject" => self.include_object = given(value),
            "fieldManager" => self.field_manager = given(value),
            "dryRun" => match value.as_str() {
                "All" => self.dry_run = true,
                "" => {}
                _ => return Err(wrong("All")),
            },
            "fieldValidation" => match value.as_str() {
                // Unknown fields are errors whatever was asked for: a policy that is silently not
                // applied is a hole.
                "" | "Ignore" | "Warn" | "Strict" => {}
                _ => return Err(wrong("Ignore, Warn or Strict")),
            },
            _ => {}
        }
        Ok(())
    }

    /// Who writes: as the request says, else by the name of the program that sends it.
    pub(super) fn manager(&self, headers: &HeaderMap) -> Result<String, Failure> {
        let agent = || {
            let agent = headers.get(http::header::USER_AGENT)?.to_str().ok()?;
            agent.split('/').next().filter(|name| !name.is_empty()).map(ToOwned::to_owned)
        };
        let manager = self.field_manager.clone().or_else(agent).unwrap_or_else(|| "unknown".into());
        let printable = manager.chars().all(|c| !c.is_control());
        if manager.chars().count() > MAX_MANAGER_CHARACTERS || !printable {
            return Err(Failure::bad_request(format!(
                "fieldManager must be at most {MAX_MANAGER_CHARACTERS} printable characters"
            )));
        }
        Ok(manager)
    }

    /// Server-side apply wants to be told by whom.
    pub(super) fn require_manager(&self) -> Result<(), Failure> {
        match &self.field_manager {
            Some(_) => Ok(()),
            None => Err(Failure::bad_request(
                "server-side apply needs the parameter fieldManager: the name under which the applied fields are owned",
            )),
        }
    }
}

fn given(value: String) -> Option<String> {
    Some(value).filter(|value| !value.is_empty())
}

/// `+` is a space here, and `%XX` a byte.
fn decode(text: &str) -> Result<String, Failure> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        let digit = |byte: Option<u8>| byte.and_then(|byte| char::from(byte).to_digit(16));
        bytes.push(match byte {
            b'+' => b' ',
            b'%' => match (digit(rest.next()), digit(rest.next())) {
                (Some(high), Some(low)) => (high * 16 + low) as u8,
                _ => return Err(Failure::bad_request(format!("{text:?} has a broken %-escape"))),
            },
            other => other,
        });
    }
    String::from_utf8(bytes)
        .map_err(|_| Failure::bad_request(format!("{text:?} is not UTF-8 when decoded")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_kubectl_sends() {
        let parameters = Parameters::parse(Some(
            "dryRun=All&fieldManager=kubectl%20apply&force=true&limit=500&watch=1&timeoutSeconds=5&unknown=x&resourceVersion=",
        ))
        .unwrap();
        assert!(parameters.dry_run && parameters.force && parameters.watch);
        assert_eq!(parameters.manager(&HeaderMap::new()).unwrap(), "kubectl apply");
        assert_eq!((parameters.limit, parameters.timeout_seconds), (Some(500), Some(5)));
        assert_eq!(parameters.resource_version, None);
    }

    #[test]
    fn says_which_parameter_is_wrong() {
        for query in [
            "dryRun=Some",
            "limit=-1",
            "watch=maybe",
            "timeoutSeconds=x",
            "fieldValidation=Hard",
            "labelSelector=%3D%3D",
            "continue=%",
            "continue=%ff",
            "fieldSelector=spec.x=1",
        ] {
            assert!(Parameters::parse(Some(query)).is_err(), "{query}");
        }
    }

    #[test]
    fn the_manager_is_the_program_unless_named() {
        let mut headers = HeaderMap::new();
        headers.insert("user-agent", "kubectl/v1.32 (linux)".parse().unwrap());
        let manager = |query| Parameters::parse(Some(query)).unwrap().manager(&headers);
        assert_eq!(manager("").unwrap(), "kubectl");
        assert_eq!(manager("fieldManager=ci").unwrap(), "ci");
        assert!(manager("fieldManager=a%0Ab").is_err());
        assert!(Parameters::default().require_manager().is_err());
    }
}
