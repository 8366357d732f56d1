//! `leno get`: what the control plane has.
//!
//! `get/columns.rs` says what a row shows.

use std::{io::Write, process::ExitCode};

use leno_api::{KindInfo, model::ObjectName};
use serde_json::{Value, json};

use self::columns::Columns;
use super::selection::Selection;
use crate::{
    api_client::{ApiClient, List, ServerArgs},
    error::Error,
    table::Table,
    yaml_text::yaml_text,
};

mod columns;

/// Show resources
#[derive(Debug, clap::Args)]
pub struct GetArgs {
    /// services, workloads, httproutes, ...; several with commas between; or KIND/NAME
    kind: String,

    /// One of that name; all when left out
    name: Option<String>,

    /// Where to look
    #[arg(short, long, value_name = "NS", env = "LENO_NAMESPACE", default_value = "default")]
    namespace: String,

    /// Those of all namespaces
    #[arg(short = 'A', long)]
    all_namespaces: bool,

    /// How to print them
    #[arg(short, long, value_enum, default_value = "table")]
    output: Output,

    /// Stay and show changes as they happen
    #[arg(short, long)]
    watch: bool,

    #[command(flatten)]
    server: ServerArgs,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Output {
    Table,
    Yaml,
    Json,
    Name,
}

pub async fn run(args: &GetArgs, out: &mut impl Write) -> Result<ExitCode, Error> {
    if args.kind.contains(',') {
        return several(args, out).await;
    }
    let selection = Selection::parse(&args.kind, args.name.as_deref())?;
    let client = ApiClient::new(&args.server)?;
    let namespace = (!args.all_namespaces).then_some(args.namespace.as_str());
    if selection.name.is_some() && args.all_namespaces {
        return Err(Error::Usage("a name is looked up in one namespace; leave out -A".to_owned()));
    }
    let list = match selection.object(&args.namespace) {
        Some(name) if !args.watch => one(&client, &selection, &name).await?,
        _ => client.list(selection.kind, namespace).await?.only(selection.name.as_deref()),
    };
    let mut printer = Printer::new(selection.kind, args);
    printer.print_list(&list, selection.name.is_some(), out)?;
    if args.watch {
        watch(&client, &selection, namespace, &list, &mut printer, out).await?;
    }
    Ok(ExitCode::SUCCESS)
}

/// Everything of several kinds, one after the other.
async fn several(args: &GetArgs, out: &mut impl Write) -> Result<ExitCode, Error> {
    if args.name.is_some() || args.kind.contains('/') || args.watch {
        let message = "of several kinds everything is shown, once; ask for one kind with a name or with --watch";
        return Err(Error::Usage(message.to_owned()));
    }
    let selections: Result<Vec<_>, _> =
        args.kind.split(',').map(|kind| Selection::parse(kind, None)).collect();
    let client = ApiClient::new(&args.server)?;
    let namespace = (!args.all_namespaces).then_some(args.namespace.as_str());
    let mut all = Vec::new();
    let mut printed = 0;
    for Selection { kind, .. } in selections? {
        let list = client.list(kind, namespace).await?;
        let mut printer = Printer { documents: printed, ..Printer::new(kind, args) };
        match args.output {
            Output::Json => all.extend(list.items),
            Output::Table if list.items.is_empty() => continue,
            output => {
                if output == Output::Table {
                    writeln!(out, "{}{}", if printed > 0 { "\n" } else { "" }, kind.plural)?;
                }
                printed += list.items.len();
                printer.print_list(&list, false, out)?;
            }
        }
    }
    match args.output {
        Output::Json => writeln!(out, "{:#}", as_list(&all))?,
        Output::Table if printed == 0 => {
            eprintln!("there are none of these here; -A looks in all namespaces");
        }
        _ => {}
    }
    Ok(ExitCode::SUCCESS)
}

async fn one(client: &ApiClient, selection: &Selection, name: &ObjectName) -> Result<List, Error> {
    match client.get(selection.kind, name).await? {
        Some(object) => Ok(List { items: vec![object], ..List::default() }),
        None => Err(Error::Usage(format!("there is no {} {name}", selection.kind.kind))),
    }
}

async fn watch(
    client: &ApiClient,
    selection: &Selection,
    namespace: Option<&str>,
    list: &List,
    printer: &mut Printer,
    out: &mut impl Write,
) -> Result<(), Error> {
    let mut version = list.resource_version.clone();
    // The control plane ends a watch from time to time; the next one goes on where it stopped.
    loop {
        let mut watch = client.watch(selection.kind, namespace, &version).await?;
        while let Some(event) = watch.next().await? {
            let seen = event.object.pointer("/metadata/resourceVersion").and_then(Value::as_str);
            if let Some(seen) = seen {
                version = seen.to_owned();
            }
            let wanted =
                selection.name.as_deref().is_none_or(|name| name_of(&event.object) == name);
            if event.kind != "BOOKMARK" && wanted {
                printer.print_change(&event.kind, &event.object, out)?;
                out.flush()?;
            }
        }
    }
}

struct Printer {
    output: Output,
    watch: bool,
    kind: &'static KindInfo,
    columns: Columns,
    table: Table,
    documents: usize,
}

impl Printer {
    fn new(kind: &'static KindInfo, args: &GetArgs) -> Self {
        let columns = Columns::new(kind, args.all_namespaces);
        let table = Table::new(columns.header());
        Self { output: args.output, watch: args.watch, kind, columns, table, documents: 0 }
    }

    fn print_list(&mut self, list: &List, single: bool, out: &mut impl Write) -> Result<(), Error> {
        match self.output {
            Output::Table => {
                for item in &list.items {
                    self.table.add(self.columns.row(item));
                }
                match self.table.is_empty() && !self.watch {
                    true => eprintln!(
                        "there are no {} here; -A looks in all namespaces",
                        self.kind.plural
                    ),
                    false => self.table.print(out)?,
                }
            }
            Output::Json => {
                let whole = match (single, list.items.as_slice()) {
                    (true, [only]) => for_people(only),
                    (_, items) => as_list(items),
                };
                writeln!(out, "{whole:#}")?;
            }
            Output::Yaml | Output::Name => {
                for item in &list.items {
                    self.print_object(item, out)?;
                }
            }
        }
        Ok(())
    }

    fn print_change(
        &mut self,
        change: &str,
        object: &Value,
        out: &mut impl Write,
    ) -> Result<(), Error> {
        if self.output == Output::Table {
            let mut row = self.columns.row(object);
            if change == "DELETED"
                && let Some(last) = row.last_mut()
            {
                last.push_str(" (deleted)");
            }
            self.table.add(row);
            return Ok(self.table.print_more(out)?);
        }
        self.print_object(object, out)
    }

    fn print_object(&mut self, object: &Value, out: &mut impl Write) -> Result<(), Error> {
        match self.output {
            Output::Yaml => {
                if self.documents > 0 {
                    writeln!(out, "---")?;
                }
                self.documents += 1;
                write!(out, "{}", yaml_text(&for_people(object)))?;
            }
            Output::Json => writeln!(out, "{:#}", for_people(object))?,
            _ => writeln!(out, "{}/{}", self.kind.singular, name_of(object))?,
        }
        Ok(())
    }
}

fn as_list(items: &[Value]) -> Value {
    let items: Vec<_> = items.iter().map(for_people).collect();
    json!({"apiVersion": "v1", "kind": "List", "items": items})
}

/// Without the book-keeping of who owns which field, which is longer than the object.
fn for_people(object: &Value) -> Value {
    let mut object = object.clone();
    if let Some(metadata) = object.get_mut("metadata").and_then(Value::as_object_mut) {
        metadata.remove("managedFields");
    }
    object
}

impl List {
    fn only(mut self, name: Option<&str>) -> Self {
        if let Some(name) = name {
            self.items.retain(|item| name_of(item) == name);
        }
        self
    }
}

fn name_of(object: &Value) -> &str {
    object.pointer("/metadata/name").and_then(Value::as_str).unwrap_or_default()
}
