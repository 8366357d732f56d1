//! The same rules by a plugin of the node (Container Network Interface, specification 1.0.0), so that nothing in a pod needs
//! the right to write them. It is chained: the plugin that makes the pod's network comes before it.
//!
//! Pure: what the runtime says, and what it is told. [`crate::plugin`] does what is asked.

use std::{collections::BTreeMap, path::PathBuf};

use clap::Parser;
use serde::Deserialize;
use serde_json::{Value, json};

use crate::options::InstallArgs;

/// Versions of the specification that are spoken. Results are passed on as they are, so that nothing differs.
pub const VERSIONS: [&str; 4] = ["0.3.0", "0.3.1", "0.4.0", "1.0.0"];
/// Annotation of a pod that has a sidecar.
pub const INJECTED: &str = "leno.dev/injected";
/// Annotation that says who writes the rules of a pod.
pub const REDIRECT: &str = "leno.dev/redirect";
/// What it says where this plugin does.
pub const BY_PLUGIN: &str = "cni";
/// Annotations that say what is led through the sidecar, with the flags that say the same.
pub const ANNOTATIONS: [(&str, &str); 7] = [
    ("leno.dev/include-outbound-ports", "--include-outbound-ports"),
    ("leno.dev/exclude-outbound-ports", "--exclude-outbound-ports"),
    ("leno.dev/include-outbound-ranges", "--include-outbound-ranges"),
    ("leno.dev/exclude-outbound-ranges", "--exclude-outbound-ranges"),
    ("leno.dev/include-inbound-ports", "--include-inbound-ports"),
    ("leno.dev/exclude-inbound-ports", "--exclude-inbound-ports"),
    ("leno.dev/exclude-interfaces", "--exclude-interfaces"),
];

/// What a runtime says by environment variables.
#[derive(Clone, Debug, Default)]
pub struct Environment {
    /// `CNI_COMMAND`.
    pub command: String,
    /// `CNI_CONTAINERID`.
    pub container: String,
    /// `CNI_NETNS`.
    pub namespace: String,
}

/// What is to be done.
#[derive(Clone, Debug)]
pub enum Request {
    /// Rules for a pod that begins.
    Add(Asked),
    /// Whether they are in force.
    Check(Asked),
    /// Nothing: the rules end with the pod's network.
    Delete,
    /// Which versions are spoken.
    Version,
}

/// For one pod.
#[derive(Clone, Debug)]
pub struct Asked {
    /// Its network namespace.
    pub namespace: PathBuf,
    /// Which rules; none where it has no sidecar, or writes them itself.
    pub rules: Option<Box<InstallArgs>>,
    /// What the plugins before this one have made.
    pub result: Value,
}

/// Why it is not done, in the words and numbers of the specification (section "Error").
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    code: u32,
    message: &'static str,
    details: String,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Config {
    #[serde(default)]
    cni_version: String,
    prev_result: Option<Value>,
    runtime_config: Option<RuntimeConfig>,
}

#[derive(Debug, Deserialize)]
struct RuntimeConfig {
    #[serde(rename = "io.kubernetes.cri.pod-annotations")]
    annotations: Option<BTreeMap<String, String>>,
}

/// The flags of the rules, read as `leno redirect install` reads them.
#[derive(Debug, Parser)]
struct Line {
    #[command(flatten)]
    rules: InstallArgs,
}

impl Refusal {
    /// The version of the configuration is none of ours.
    fn version(found: &str) -> Self {
        let details = format!("this is {found}; {} are spoken", VERSIONS.join(", "));
        Self { code: 1, message: "incompatible CNI version", details }
    }

    /// A variable is missing or means nothing.
    pub fn environment(details: impl Into<String>) -> Self {
        Self { code: 4, message: "invalid environment variables", details: details.into() }
    }

    /// Reading or writing failed.
    pub fn transfer(details: impl Into<String>) -> Self {
        Self { code: 5, message: "I/O failure", details: details.into() }
    }

    /// What came is not JSON.
    fn content(details: String) -> Self {
        Self { code: 6, message: "failed to decode content", details }
    }

    /// What came cannot be meant.
    fn config(details: impl Into<String>) -> Self {
        Self { code: 7, message: "invalid network config", details: details.into() }
    }

    /// The rules could not be written.
    pub fn rules(details: impl Into<String>) -> Self {
        Self { code: 100, message: "the sidecar's rules", details: details.into() }
    }

    /// As the runtime is told.
    pub fn json(&self, version: &str) -> Value {
        let Self { code, message, details } = self;
        json!({"cniVersion": version, "code": code, "msg": message, "details": details})
    }
}

/// The version of the specification in which `input` speaks, or the newest.
pub fn version(input: &[u8]) -> String {
    let said = serde_json::from_slice::<Config>(input).map(|config| config.cni_version);
    said.ok().filter(|version| is_spoken(version)).unwrap_or_else(|| newest().to_owned())
}

fn newest() -> &'static str {
    VERSIONS.last().copied().unwrap_or_default()
}

fn is_spoken(version: &str) -> bool {
    VERSIONS.contains(&version)
}

/// What is asked by `environment` and `input`.
///
/// # Errors
/// What cannot be understood, or cannot be done.
pub fn read(environment: &Environment, input: &[u8]) -> Result<Request, Refusal> {
    let asked = match &*environment.command {
        "VERSION" => return Ok(Request::Version),
        // The runtime may call again and again for what is long gone, and wants to hear that it is.
        "DEL" => return Ok(Request::Delete),
        "ADD" => Request::Add,
        "CHECK" => Request::Check,
        other => {
            return Err(Refusal::environment(format!(
                "CNI_COMMAND is `{other}`, and must be ADD, CHECK, DEL or VERSION: container runtimes call this program, people call \
                 leno redirect"
            )));
        }
    };
    let config: Config =
        serde_json::from_slice(input).map_err(|error| Refusal::content(error.to_string()))?;
    if !is_spoken(&config.cni_version) {
        return Err(Refusal::version(&config.cni_version));
    }
    let result = config.prev_result.ok_or_else(|| {
        Refusal::config(
            "prevResult is missing: put this plugin behind the one that makes the pod's network",
        )
    })?;
    if environment.namespace.is_empty() {
        return Err(Refusal::environment("CNI_NETNS is missing"));
    }
    let annotations = config.runtime_config.and_then(|runtime| runtime.annotations);
    let rules = rules(&annotations.unwrap_or_default())?;
    Ok(asked(Asked { namespace: PathBuf::from(&environment.namespace), rules, result }))
}

/// The rules for a pod with these annotations.
fn rules(annotations: &BTreeMap<String, String>) -> Result<Option<Box<InstallArgs>>, Refusal> {
    let by_plugin = annotations.get(REDIRECT).is_some_and(|who| who.trim() == BY_PLUGIN);
    // Without a sidecar there would be nobody at the other end.
    if !by_plugin || !annotations.contains_key(INJECTED) {
        return Ok(None);
    }
    let said = ANNOTATIONS.iter().filter_map(|(key, flag)| {
        annotations.get(*key).map(|value| format!("{flag}={}", value.trim()))
    });
    let words = ["leno-cni".to_owned()].into_iter().chain(said);
    let line = Line::try_parse_from(words).map_err(|error| Refusal::config(error.to_string()))?;
    let plan = line.rules.plan(true).map_err(|error| Refusal::config(error.to_string()))?;
    plan.check().map_err(|error| Refusal::config(error.to_string()))?;
    Ok(Some(Box::new(line.rules)))
}

/// What the runtime is told of the versions.
pub fn versions(version: &str) -> Value {
    json!({"cniVersion": version, "supportedVersions": VERSIONS})
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::Ports;

    fn environment(command: &str) -> Environment {
        let namespace = "/run/netns/a".to_owned();
        Environment { command: command.to_owned(), container: "c".to_owned(), namespace }
    }

    fn input(annotations: &Value) -> Value {
        json!({
            "cniVersion": "1.0.0", "name": "pods", "type": "leno-cni", "prevResult": {"ips": []},
            "runtimeConfig": {"io.kubernetes.cri.pod-annotations": annotations}, "somethingElse": 1,
        })
    }

    fn asked(annotations: &Value) -> Result<Asked, Refusal> {
        let text = input(annotations).to_string();
        match read(&environment("ADD"), text.as_bytes())? {
            Request::Add(asked) => Ok(asked),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_pod_with_a_sidecar_gets_what_its_annotations_say() {
        let found = asked(&json!({
            REDIRECT: "cni", INJECTED: "{}", "leno.dev/exclude-outbound-ports": " 25, 8000-8099",
            "leno.dev/include-inbound-ports": "*", "leno.dev/exclude-interfaces": "eth1", "other": "x",
        }));
        let found = found.unwrap();
        assert_eq!(
            (found.namespace.to_str(), found.result),
            (Some("/run/netns/a"), json!({"ips": []}))
        );
        let plan = found.rules.unwrap().plan(false).unwrap();
        let ports = [Ports::one(25), Ports { first: 8000, last: 8099 }];
        assert_eq!(plan.exclude_outbound_ports, ports);
        assert_eq!(plan.exclude_interfaces.len(), 1);
        assert_eq!(plan.users, [1337]);
    }

    #[test]
    fn every_other_pod_is_left_alone() {
        for annotations in [
            json!(null),
            json!({}),
            json!({INJECTED: "{}"}),
            json!({INJECTED: "{}", REDIRECT: "init"}),
            // It asked for one, and did not get it.
            json!({REDIRECT: "cni"}),
        ] {
            assert!(asked(&annotations).unwrap().rules.is_none(), "{annotations}");
        }
        let mut bare = input(&json!({}));
        bare.as_object_mut().unwrap().remove("runtimeConfig");
        let found = read(&environment("CHECK"), bare.to_string().as_bytes());
        assert!(matches!(found, Ok(Request::Check(Asked { rules: None, .. }))));
    }

    #[test]
    fn what_cannot_be_done_is_said_in_numbers() {
        let text = |change: fn(&mut Value)| {
            let mut value = input(&json!({REDIRECT: "cni", INJECTED: "{}"}));
            change(&mut value);
            value.to_string()
        };
        let annotation = |value: &mut Value, key: &str, said: &str| {
            value["runtimeConfig"]["io.kubernetes.cri.pod-annotations"][key] = said.into();
        };
        let bad = text(|value| value["cniVersion"] = "0.2.0".into());
        let alone = text(|value| drop(value.as_object_mut().unwrap().remove("prevResult")));
        let mut port = input(&json!({REDIRECT: "cni", INJECTED: "{}"}));
        annotation(&mut port, "leno.dev/exclude-outbound-ports", "http");
        for (command, input, code, part) in [
            ("ADD", "{", 6, "EOF"),
            ("ADD", &*bad, 1, "this is 0.2.0"),
            ("ADD", &*alone, 7, "behind the one that makes"),
            ("CHECK", &*port.to_string(), 7, "--exclude-outbound-ports: `http`"),
            ("GC", "{}", 4, "`GC`"),
            ("", "", 4, "people call"),
        ] {
            let refusal = read(&environment(command), input.as_bytes()).unwrap_err();
            let told = refusal.json("1.0.0");
            assert_eq!(told["code"], code, "{told}");
            assert!(told["details"].as_str().unwrap().contains(part), "{told}");
        }
        let nowhere = Environment { namespace: String::new(), ..environment("ADD") };
        let refusal = read(&nowhere, text(|_| ()).as_bytes()).unwrap_err();
        assert_eq!(refusal, Refusal::environment("CNI_NETNS is missing"));
        assert!(matches!(read(&nowhere, b""), Err(Refusal { code: 6, .. })));
        let gone = Environment { command: "DEL".to_owned(), ..nowhere };
        assert!(matches!(read(&gone, b""), Ok(Request::Delete)));
    }

    #[test]
    fn answers_speak_as_they_were_spoken_to() {
        assert_eq!(version(br#"{"cniVersion": "0.4.0"}"#), "0.4.0");
        assert_eq!(version(b"{"), "1.0.0");
        assert_eq!(version(br#"{"cniVersion": "7.0.0"}"#), "1.0.0");
    }
}
