//! What a container runtime asks of `leno-cni`: one question by environment and standard input, one answer on standard
//! output.

use std::{
    fs::File,
    io::{self, Read, Write},
    os::fd::AsFd,
    path::Path,
};

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use serde_json::Value;

use crate::{
    cni::{self, Asked, Environment, Refusal, Request},
    options::Command,
    run,
};

/// Bytes of a question; it holds what all plugins before have made, and the pod's annotations (256 KiB in Kubernetes).
const MAX_INPUT: u64 = 4 * 1024 * 1024;

/// Answers one question. Says whether it was done; the answer says so, too.
///
/// # Errors
/// When nobody takes the answer.
pub fn answer(
    environment: &Environment,
    input: impl Read,
    out: &mut impl Write,
) -> io::Result<bool> {
    let mut text = Vec::new();
    let read = input.take(MAX_INPUT + 1).read_to_end(&mut text);
    let version = cni::version(&text);
    let done = match read {
        Err(error) => Err(Refusal::transfer(format!("standard input: {error}"))),
        Ok(length) if length as u64 > MAX_INPUT => {
            Err(Refusal::transfer(format!("the question is larger than {MAX_INPUT} bytes")))
        }
        Ok(_) => cni::read(environment, &text).and_then(|request| perform(request, &version)),
    };
    match &done {
        Ok(None) => {}
        Ok(Some(result)) => writeln!(out, "{result}")?,
        Err(refusal) => writeln!(out, "{}", refusal.json(&version))?,
    }
    Ok(done.is_ok())
}

/// Does it, and says what the runtime is told.
fn perform(request: Request, version: &str) -> Result<Option<Value>, Refusal> {
    match request {
        Request::Version => Ok(Some(cni::versions(version))),
        Request::Delete => Ok(None),
        Request::Add(Asked { namespace, rules, mut result }) => {
            if let Some(rules) = rules {
                enter(&namespace)?;
                // What it says is for people; the runtime is told what the plugins before have made.
                let installed = run::execute(&Command::Install(rules), &mut io::sink());
                installed.map_err(|error| Refusal::rules(error.to_string()))?;
            }
            if let Value::Object(fields) = &mut result {
                fields.insert("cniVersion".to_owned(), version.into());
            }
            Ok(Some(result))
        }
        Request::Check(Asked { namespace, rules, .. }) => {
            if let Some(rules) = rules {
                enter(&namespace)?;
                run::verify(&rules).map_err(|error| Refusal::rules(error.to_string()))?;
            }
            Ok(None)
        }
    }
}

/// This process, which has one thread, and what it starts are in that network namespace from now on.
fn enter(namespace: &Path) -> Result<(), Refusal> {
    let failed = |error: io::Error| {
        Refusal::environment(format!("CNI_NETNS {}: {error}", namespace.display()))
    };
    let file = File::open(namespace).map_err(failed)?;
    move_into_link_name_space(file.as_fd(), Some(LinkNameSpaceType::Network))
        .map_err(|error| failed(error.into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_told() {
        let environment = Environment { command: "VERSION".to_owned(), ..Environment::default() };
        let mut out = Vec::new();
        assert!(answer(&environment, &br#"{"cniVersion": "0.4.0"}"#[..], &mut out).unwrap());
        let told: Value = serde_json::from_slice(&out).unwrap();
        assert_eq!(told["cniVersion"], "0.4.0");
        assert!(told["supportedVersions"].as_array().unwrap().contains(&"1.0.0".into()));
    }

    #[test]
    fn a_namespace_that_is_none_is_named() {
        let environment = Environment {
            command: "ADD".to_owned(),
            namespace: "/nowhere/netns".to_owned(),
            ..Environment::default()
        };
        let input = r#"{"cniVersion": "1.0.0", "prevResult": {}, "runtimeConfig":
            {"io.kubernetes.cri.pod-annotations": {"leno.dev/redirect": "cni", "leno.dev/injected": "{}"}}}"#;
        let mut out = Vec::new();
        assert!(!answer(&environment, input.as_bytes(), &mut out).unwrap());
        let told: Value = serde_json::from_slice(&out).unwrap();
        assert_eq!(told["code"], 4);
        assert!(told["details"].as_str().unwrap().contains("/nowhere/netns"), "{told}");
    }
}
