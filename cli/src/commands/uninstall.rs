//! `leno uninstall`: prints what is to be deleted from Kubernetes, in an order in which nothing gets stuck.

use std::{io::Write, process::ExitCode};

use serde_json::{Value, json};

use crate::{
    error::Error,
    install::{self, Values},
    yaml_text::yaml_text,
};

/// Print what is to be deleted from Kubernetes: `leno uninstall | kubectl delete --ignore-not-found -f -`
#[derive(Debug, clap::Args)]
pub struct UninstallArgs {
    /// Also the definitions of Leno's kinds with every policy there is, the mesh's root and its namespace
    #[arg(long)]
    purge: bool,
}

/// First what Kubernetes would wait for: without its webhooks every pod starts, whatever else is there.
const ORDER: [&str; 11] = [
    "MutatingWebhookConfiguration",
    "ValidatingWebhookConfiguration",
    "PodDisruptionBudget",
    "Deployment",
    "Service",
    "RoleBinding",
    "Role",
    "ClusterRoleBinding",
    "ClusterRole",
    "ServiceAccount",
    // What follows are people's: policies, the root's key.
    "PersistentVolumeClaim",
];
const PEOPLES: [&str; 3] = ["PersistentVolumeClaim", "CustomResourceDefinition", "Namespace"];

pub fn run(args: &UninstallArgs, out: &mut impl Write) -> Result<ExitCode, Error> {
    let values = Values::new(&[], &[]).map_err(|error| Error::Usage(error.to_string()))?;
    for manifest in deletions(install::manifests(&values), args.purge) {
        write!(out, "---\n{}", yaml_text(&manifest))?;
    }
    if args.purge {
        eprintln!("every policy, the mesh's root and the namespace leno-system go as well");
    } else {
        eprintln!(
            "policies, their definitions, the mesh's root and the namespace leno-system stay; --purge takes them, too"
        );
    }
    eprintln!(
        "pods keep their sidecars until they are made anew: take the label leno.dev/inject from namespaces, then `kubectl rollout restart` what is in them"
    );
    Ok(ExitCode::SUCCESS)
}

/// What says which objects are meant, and no more.
fn deletions(manifests: Vec<Value>, purge: bool) -> Vec<Value> {
    let rank = |manifest: &Value| {
        let kind = manifest["kind"].as_str().unwrap_or_default();
        // Definitions and the namespace come last, in the opposite order of creation.
        ORDER.iter().position(|known| *known == kind).unwrap_or(match kind {
            "Namespace" => usize::MAX,
            _ => ORDER.len(),
        })
    };
    let mut wanted: Vec<_> = manifests
        .into_iter()
        .filter(|manifest| purge || PEOPLES.iter().all(|kind| manifest["kind"] != *kind))
        .collect();
    wanted.sort_by_key(rank);
    wanted.iter().map(reference).collect()
}

fn reference(manifest: &Value) -> Value {
    let metadata = &manifest["metadata"];
    let mut reference = json!({
        "apiVersion": manifest["apiVersion"], "kind": manifest["kind"],
        "metadata": {"name": metadata["name"]},
    });
    if metadata["namespace"].is_string() {
        reference["metadata"]["namespace"] = metadata["namespace"].clone();
    }
    reference
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kinds(purge: bool) -> Vec<String> {
        let manifests = install::manifests(&Values::new(&[], &[]).unwrap());
        let deletions = deletions(manifests, purge).into_iter();
        deletions.map(|manifest| manifest["kind"].as_str().unwrap().to_owned()).collect()
    }

    #[test]
    fn webhooks_go_first_and_what_is_the_users_stays() {
        let kept = kinds(false);
        assert!(kept[0].starts_with("Mutating") && kept[1].starts_with("Validating"));
        assert!(PEOPLES.iter().all(|kind| !kept.contains(&(*kind).to_owned())), "{kept:?}");
        let all = kinds(true);
        assert_eq!(all.last().unwrap(), "Namespace");
        assert_eq!(all.len(), install::manifests(&Values::new(&[], &[]).unwrap()).len());
    }

    #[test]
    fn only_names_are_printed() {
        let manifests = install::manifests(&Values::new(&[], &[]).unwrap());
        for reference in deletions(manifests, true) {
            assert!(reference.get("spec").is_none() && reference["metadata"]["name"].is_string());
        }
    }
}
