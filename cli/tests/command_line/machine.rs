//! `leno join` and `leno leave` with the files and commands of a real machine, in mount and process namespaces of their
//! own. systemd is a script there: it notes what it is told, and starts what the unit says. Needs root; says so where it
//! is missing.

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::Path,
    process::{Command, Stdio},
};

use crate::process::{ControlPlane, Said};

const SERVICE: &str = "\
apiVersion: leno.dev/v1alpha1
kind: Service
metadata: {name: orders, namespace: shop}
spec: {ports: [{name: http, port: 80, protocol: http}]}
";

const SYSTEMCTL: &str = r#"#!/bin/sh
folder=$(dirname "$0")
echo "$*" >> "$folder/told"
for last; do :; done
name=${last#leno-proxy@}
name=${name%.service}
stop() {
    pid=$(cat "$folder/pid" 2>/dev/null) || return 0
    kill "$pid"
    # Nobody may have asked how it ended.
    while state=$(sed -n 's/^State:.\(.\).*/\1/p' "/proc/$pid/status" 2>/dev/null) && test "${state:-Z}" != Z; do
        sleep 0.1
    done
    rm "$folder/pid"
}
case "$1" in
is-active) test -e "$folder/pid" ;;
disable) stop ;;
restart)
    stop
    set -a
    . "/etc/leno/$name.env"
    CREDENTIALS_DIRECTORY="$folder"
    cp "/etc/leno/$name.token" "$folder/token"
    command=$(sed -n 's/^ExecStart=//p' "/etc/systemd/system/leno-proxy@.service")
    eval "exec $command" > /dev/null 2> "$folder/log" &
    echo $! > "$folder/pid"
    ;;
esac
"#;

/// A machine with an empty /etc and /run, on which this program is where it belongs.
const MACHINE: &str = r#"
set -e
mount -t tmpfs none /usr/local/bin
touch /usr/local/bin/leno
mount --bind "$LENO" /usr/local/bin/leno
mount -t tmpfs none /etc
mkdir -p /etc/systemd/system
mount -t tmpfs none /run
mkdir -p /run/systemd/system
leno=/usr/local/bin/leno
"#;

/// Whether the test can run here; says why not.
fn can_run() -> bool {
    if !rustix::process::geteuid().is_root() {
        eprintln!("skipped: mounts need root");
        return false;
    }
    let tried = Command::new("unshare").args(["--mount", "--pid", "--fork", "true"]).output();
    let works = tried.is_ok_and(|tried| tried.status.success());
    if !works {
        eprintln!("skipped: `unshare --mount --pid --fork` does not work here");
    }
    works
}

/// Runs `script` on a machine where `words` are its arguments.
fn on_a_machine(folder: &Path, script: &str, words: &[String]) -> Said {
    let systemctl = folder.join("systemctl");
    fs::write(&systemctl, SYSTEMCTL).unwrap();
    fs::set_permissions(&systemctl, fs::Permissions::from_mode(0o755)).unwrap();
    let done = Command::new("unshare")
        .args(["--mount", "--pid", "--fork", "--kill-child", "--mount-proc", "sh", "-c"])
        .arg(format!("{MACHINE}{script}"))
        .arg("machine")
        .args(words)
        .env("LENO", env!("CARGO_BIN_EXE_leno"))
        .env("PATH", format!("{}:/usr/sbin:/usr/bin:/sbin:/bin", folder.display()))
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    Said { code: done.status.code().unwrap(), output: text(done.stdout), errors: text(done.stderr) }
}

/// Where nobody else listens: an address of loopback that is named after this process.
fn admin(number: u8) -> String {
    let process = std::process::id();
    format!("127.{}.{}.{}:15000", 77 + number, process >> 8 & 0xff, process & 0xff)
}

fn words(mesh: &ControlPlane, service: &str, number: u8) -> Vec<String> {
    let (mut words, _) = mesh.join(&format!("{service}-1"), service);
    let more = ["--app", "http=9001", "--address", "127.0.0.1"];
    let any = ["--outbound=127.0.0.1:0", "--inbound=127.0.0.1:0"];
    words.extend(more.into_iter().chain(any).map(str::to_owned));
    words.push(format!("--admin={}", admin(number)));
    words
}

#[test]
fn systemd_is_told_what_it_takes() {
    if !can_run() {
        return;
    }
    let (mesh, folder) = (ControlPlane::start(), tempfile::tempdir().unwrap());
    mesh.leno(&["apply", "-f", &mesh.file("service.yaml", SERVICE)]).good();
    let script = "
        $leno \"$@\"
        echo again
        $leno \"$@\"
        echo check
        $leno check --machine
        echo modes $(stat -c %a /etc/leno /etc/leno/orders-1.token /etc/leno/orders-1.env)
        $leno leave orders-1
        echo left $(ls -A /etc/leno /etc/systemd/system)
        ! $leno check --machine --output json | grep orders-1
    ";
    let said = on_a_machine(folder.path(), script, &words(&mesh, "orders", 0));
    assert_eq!(said.code, 0, "{} {}", said.output, said.errors);
    let (first, rest) = said.output.split_once("again\n").unwrap();
    assert_eq!(first.matches(" created\n").count(), 4, "{first}");
    assert!(first.ends_with("orders-1 has joined: callers are sent here\n"), "{first}");
    let (again, rest) = rest.split_once("check\n").unwrap();
    assert!(again.contains("leno-proxy@orders-1.service runs already\n"), "{again}");
    assert_eq!(again.matches(" unchanged\n").count(), 4, "{again}");
    assert!(rest.contains("sidecar orders-1") && rest.contains("is ready"), "{rest}");
    assert!(rest.contains("modes 755 600 644\n"), "{rest}");
    assert_eq!(rest.matches(" removed\n").count(), 4, "{rest}");
    assert!(rest.ends_with("left /etc/leno: /etc/systemd/system:\n"), "{rest}");
    let told = fs::read_to_string(folder.path().join("told")).unwrap();
    let unit = "leno-proxy@orders-1.service";
    let expected = format!(
        "daemon-reload\nenable {unit}\nrestart {unit}\nis-active --quiet {unit}\ndisable --now {unit}\n\
         clean --what=state {unit}\ndaemon-reload\n"
    );
    assert_eq!(told, expected);
    let log = fs::read_to_string(folder.path().join("log")).unwrap();
    assert!(log.contains("everything under way has finished"), "{log}");
    let gone = mesh.leno(&["get", "workload", "orders-1", "-n", "shop"]);
    assert!(gone.errors.contains("orders-1"), "{}", gone.output);
}

/// A process that runs is not a service that can be called.
#[test]
fn a_machine_has_not_joined_before_its_service_is_served() {
    if !can_run() {
        return;
    }
    let (mesh, folder) = (ControlPlane::start(), tempfile::tempdir().unwrap());
    let words = words(&mesh, "nobody", 1);
    let said = on_a_machine(folder.path(), "$leno \"$@\" --wait 3", &words);
    assert_ne!(said.code, 0, "{}", said.output);
    let errors = &said.errors;
    assert!(errors.contains("nobody-1 has not joined within 3 s"), "{errors}");
    assert!(errors.contains("no port of service shop/nobody is served here yet"), "{errors}");
    // What cannot be started leaves its word, too.
    let broken = "
        echo '#!/bin/sh' > /run/systemctl
        echo 'echo Unit is masked >&2; exit 1' >> /run/systemctl
        chmod +x /run/systemctl
        PATH=/run:$PATH $leno \"$@\"
    ";
    let said = on_a_machine(folder.path(), broken, &words);
    assert_ne!(said.code, 0, "{}", said.output);
    assert!(said.errors.contains("systemctl daemon-reload: Unit is masked"), "{}", said.errors);
}
