use std::{fs, os::unix::fs::PermissionsExt, path::Path};

use clap::Parser;

use super::{machine::Change, *};

#[derive(Debug, clap::Parser)]
struct Command {
    #[command(flatten)]
    join: JoinArgs,
}

/// A folder with a token and roots.
fn folder() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("token"), "leno-s3cret\n").unwrap();
    let roots = "-----BEGIN CERTIFICATE-----\nMAA=\n-----END CERTIFICATE-----\n";
    fs::write(folder.path().join("root.pem"), roots).unwrap();
    folder
}

fn arguments(folder: &Path, more: &str) -> JoinArgs {
    let files = format!("--token-file {0}/token --ca-file {0}/root.pem", folder.display());
    let words = format!("join --control-plane 127.0.0.1:15012 {files} {more}");
    Command::try_parse_from(words.split_whitespace()).unwrap().join
}

const ORDERS: &str = "--service orders --app http=9001 --name orders-1 -n shop --label version=v1";

fn ran(args: &JoinArgs) -> Result<String, String> {
    let mut out = Vec::new();
    crate::block_on(run(args, &mut out)).map_err(|error| error.to_string())?;
    Ok(String::from_utf8(out).unwrap())
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o777
}

#[test]
fn files_are_written_once_and_taken_away() {
    let (folder, root) = (folder(), tempfile::tempdir().unwrap());
    let args = arguments(folder.path(), &format!("{ORDERS} --root {}", root.path().display()));
    let said = ran(&args).unwrap();
    assert_eq!(said.matches(" created\n").count(), 4, "{said}");
    assert!(said.contains("`systemctl enable --now leno-proxy@orders-1.service`"), "{said}");
    let settings = root.path().join("etc/leno");
    let environment = fs::read_to_string(settings.join("orders-1.env")).unwrap();
    for line in [
        "LENO_CONTROL_PLANE=127.0.0.1:15012",
        "LENO_NAME=orders-1",
        "LENO_NAMESPACE=shop",
        "LENO_SERVICES=orders",
        "LENO_APP=http=9001",
        "LENO_LABELS=version=v1",
        "LENO_ADDRESS=127.0.0.1",
        "LENO_CA_FILE=/etc/leno/orders-1.root.pem",
    ] {
        assert!(environment.lines().any(|known| known == line), "{line}: {environment}");
    }
    assert!(!environment.contains("s3cret"));
    assert_eq!(mode(&settings.join("orders-1.token")), 0o600);
    assert_eq!(fs::read_to_string(settings.join("orders-1.token")).unwrap(), "leno-s3cret\n");

    let again = ran(&args).unwrap();
    assert_eq!(again.matches(" unchanged\n").count(), 4, "{again}");
    fs::write(folder.path().join("token"), "leno-other").unwrap();
    let renewed = ran(&args).unwrap();
    assert_eq!(renewed.matches(" changed\n").count(), 1, "{renewed}");

    let leave = |name: &str| {
        let mut out = Vec::new();
        let args = crate::commands::leave::arguments(name, root.path());
        crate::commands::leave::run(&args, &mut out).unwrap();
        String::from_utf8(out).unwrap()
    };
    assert!(leave("orders-2").contains("nothing to do"));
    assert_eq!(leave("orders-1").matches(" removed\n").count(), 4);
    assert!(leave("orders-1").contains("nothing to do"));
    assert_eq!(fs::read_dir(settings).unwrap().count(), 0);
}

#[test]
fn the_unit_stays_while_another_sidecar_needs_it() {
    let (folder, root) = (folder(), tempfile::tempdir().unwrap());
    let machine = Machine::new(Some(root.path()));
    for name in ["a", "b"] {
        let more = format!("--service orders --app http=9001 --name {name}");
        let sidecar = Sidecar::new(&arguments(folder.path(), &more).sidecar).unwrap();
        machine.write(&sidecar).unwrap();
    }
    let unit = root.path().join("etc/systemd/system/leno-proxy@.service");
    assert_eq!(machine.remove("a").unwrap().len(), 3);
    assert!(unit.exists());
    assert_eq!(machine.remove("b").unwrap().len(), 4);
    assert!(!unit.exists());
}

/// Halfway through, there is no room, or no right, to write more.
#[test]
fn what_cannot_be_finished_is_undone() {
    let (folder, root) = (folder(), tempfile::tempdir().unwrap());
    let sidecar = Sidecar::new(&arguments(folder.path(), ORDERS).sidecar).unwrap();
    let machine = Machine::new(Some(root.path()));
    let settings = root.path().join("etc/leno");
    fs::create_dir_all(&settings).unwrap();
    fs::write(settings.join("orders-1.token"), "before").unwrap();
    // A file where the unit's folder should be.
    fs::write(root.path().join("etc/systemd"), "").unwrap();
    let error = machine.write(&sidecar).unwrap_err();
    assert!(error.contains("leno-proxy@.service") && error.contains("nothing was changed"));
    assert_eq!(fs::read_to_string(settings.join("orders-1.token")).unwrap(), "before");
    assert_eq!(fs::read_dir(&settings).unwrap().count(), 1);
    fs::remove_file(root.path().join("etc/systemd")).unwrap();
    let written = machine.write(&sidecar).unwrap();
    assert_eq!(written[0].change, Change::Changed);
}

#[test]
fn a_dry_run_writes_nothing_and_hides_the_token() {
    let folder = folder();
    let said = ran(&arguments(folder.path(), &format!("{ORDERS} --dry-run"))).unwrap();
    assert!(said.contains("LENO_APP=http=9001\n") && said.contains("ExecStart="), "{said}");
    assert!(said.contains("# systemctl restart leno-proxy@orders-1.service\n"), "{said}");
    assert!(!said.contains("s3cret"), "{said}");
    assert!(!Path::new("/etc/leno/orders-1.env").exists());
}

#[test]
fn what_is_wrong_is_named() {
    let folder = folder();
    let service = "--service orders --app http=9001";
    for (more, problem) in [
        ("--service orders --app http=9001 --name Orders_1", "--name: `Orders_1` must be"),
        ("--service orders --app http=9001 --name ../../x", "--name: `../../x` must be"),
        ("--service orders --app 9001 --name a", "must be NAME=VALUE"),
        ("--service orders --app http=90010 --name a", "number too large"),
        ("--service orders --app http=9001 --name a --label x", "`x` must be NAME=VALUE"),
        ("--service a$b --app http=9001 --name a", "--service: \"a$b\" has a character"),
        ("--service orders --app http=1 --name a --token-file /nowhere/token", "/nowhere/token"),
        ("--service orders --app http=1 --name a --ca-file /dev/null", "has no certificate"),
        ("--service orders --app http=1 --name a --token-file /dev/null", "must hold one token"),
        (
            "--service orders --app http=1 --name a --control-plane nowhere.invalid:1",
            "--address IP",
        ),
    ] {
        // The last one given of a flag that is given twice.
        let files =
            format!("--token-file {0}/token --ca-file {0}/root.pem", folder.path().display());
        let mut words: Vec<&str> = vec!["join"];
        let defaults = format!("--control-plane 127.0.0.1:15012 {files}");
        let pairs: Vec<_> = defaults.split_whitespace().collect();
        for pair in pairs.chunks(2).filter(|pair| !more.contains(pair[0])) {
            words.extend(pair);
        }
        words.extend(more.split_whitespace());
        let args = Command::try_parse_from(words).unwrap().join;
        let error = Sidecar::new(&args.sidecar).unwrap_err();
        assert!(error.contains(problem), "{more}: {error}");
    }
    let name = Sidecar::new(&arguments(folder.path(), service).sidecar).map(|sidecar| sidecar.name);
    assert!(name.is_ok_and(|name| name.starts_with("orders-")), "named after service and machine");
}

#[test]
fn the_foreground_gets_the_same_settings() {
    let folder = folder();
    let sidecar = Sidecar::new(&arguments(folder.path(), ORDERS).sidecar).unwrap();
    let words = sidecar.arguments();
    assert_eq!(words[0], "proxy");
    assert!(
        words.contains(&"--app=http=9001".to_owned())
            && words.contains(&"--name=orders-1".to_owned())
    );
    assert!(words.contains(&format!("--token-file={}/token", folder.path().display())));
}

#[test]
fn the_folder_can_be_entered_and_nothing_half_is_left() {
    let (folder, root) = (folder(), tempfile::tempdir().unwrap());
    let args = arguments(folder.path(), &format!("{ORDERS} --root {}", root.path().display()));
    ran(&args).unwrap();
    assert_eq!(mode(&root.path().join("etc/leno")), 0o755);
    let again = tempfile::tempdir().unwrap();
    // A folder stands where the file must go: the last step fails.
    fs::create_dir_all(again.path().join("etc/leno/orders-1.env/full")).unwrap();
    let args = arguments(folder.path(), &format!("{ORDERS} --root {}", again.path().display()));
    let error = ran(&args).unwrap_err();
    assert!(error.contains("nothing was changed"), "{error}");
    let left = fs::read_dir(again.path().join("etc/leno")).unwrap();
    let left: Vec<_> = left.map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(left, ["orders-1.env"], "and no token beside it");
}
