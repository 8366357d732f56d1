//! `leno-cni`: the plugin of the Container Network Interface that container runtimes call on each node.

use std::{env, io, process::ExitCode};

use leno_redirect::{cni::Environment, plugin};

fn main() -> ExitCode {
    let variable = |name: &str| env::var(name).unwrap_or_default();
    let environment = Environment {
        command: variable("CNI_COMMAND"),
        container: variable("CNI_CONTAINERID"),
        namespace: variable("CNI_NETNS"),
    };
    match plugin::answer(&environment, io::stdin(), &mut io::stdout()) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("leno-cni: {}: writing: {error}", environment.container);
            ExitCode::FAILURE
        }
    }
}
