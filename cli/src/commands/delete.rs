//! `leno delete`: removes what files or the command line name.

use std::{io::Write, path::PathBuf, process::ExitCode};

use leno_api::Key;

use super::{
    load::{FAILED, load_valid},
    selection::Selection,
};
use crate::{
    api_client::{ApiClient, ServerArgs},
    error::Error,
    files::{self, FileArgs},
};

/// Delete resources
#[derive(Debug, clap::Args)]
pub struct DeleteArgs {
    /// services, workloads, httproutes, ... or KIND/NAME
    #[arg(required_unless_present = "filename", conflicts_with = "filename")]
    kind: Option<String>,

    /// Which one
    name: Option<String>,

    /// The resources of a file, a directory, or - for standard input; may be given repeatedly
    #[arg(short, long, value_name = "FILE|DIR|-")]
    filename: Vec<PathBuf>,

    /// Read directories with all that is below them
    #[arg(short = 'R', long)]
    recursive: bool,

    /// Where to look
    #[arg(short, long, value_name = "NS", env = "LENO_NAMESPACE", default_value = "default")]
    namespace: String,

    /// Only say what would happen
    #[arg(long)]
    dry_run: bool,

    /// It is fine when there is nothing to delete
    #[arg(long)]
    ignore_not_found: bool,

    #[command(flatten)]
    server: ServerArgs,
}

pub async fn run(args: &DeleteArgs, out: &mut impl Write) -> Result<ExitCode, Error> {
    let Some(keys) = keys(args)? else { return Ok(FAILED) };
    let client = ApiClient::new(&args.server)?;
    let mut missing = 0;
    for key in &keys {
        if client.delete(key.kind, &key.name, args.dry_run).await? {
            let only = if args.dry_run { " (dry run)" } else { "" };
            writeln!(out, "{key} deleted{only}")?;
        } else if !args.ignore_not_found {
            eprintln!("error: there is no {key}");
            missing += 1;
        }
    }
    Ok(if missing == 0 { ExitCode::SUCCESS } else { FAILED })
}

fn keys(args: &DeleteArgs) -> Result<Option<Vec<Key>>, Error> {
    if let Some(kind) = &args.kind {
        let selection = Selection::parse(kind, args.name.as_deref())?;
        let name = selection.object(&args.namespace).ok_or_else(|| {
            Error::Usage(format!(
                "which {}? give a name, or files with -f",
                selection.kind.singular
            ))
        })?;
        return Ok(Some(vec![Key { kind: selection.kind, name }]));
    }
    let files = FileArgs { filename: args.filename.clone(), recursive: args.recursive };
    let Some(mut manifests) = load_valid(&files, "nothing was deleted")? else {
        return Ok(None);
    };
    files::sort_for_apply(&mut manifests);
    // Routes before the services they send to, so that nothing refers to what is gone.
    Ok(Some(manifests.iter().rev().map(|manifest| manifest.resource.key()).collect()))
}
