//! A network of this machine's own: one namespace for each node, and a router between them.
//!
//! The router is the namespace of this process ([`enter`]); whatever nodes send each other passes its forwarding rules, where [`rules`] loses, cuts, resets and throttles, and [`delay`] holds packets back. TCP stays the kernel's own. [`capture`] keeps what crosses borders, to be searched.
//!
//! Nodes without identity may listen on loopback addresses alone, so the addresses are of 127.77.0.0/16: the kernel routes them between namespaces when it is told to.
//!
//! A namespace lives as long as a process that stays in it ([`Hold`]); that process ends when its standard input does, so nothing is left behind even when this process is killed.
//!
//! Not done here: which faults there are, and when.

pub mod capture;
pub mod delay;
pub mod rules;

use std::net::Ipv4Addr;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Arc;

use anyhow::{Context as _, Result, ensure};
use parking_lot::Mutex;

use crate::cluster::Lacking;
use capture::Capture;
use delay::Delayer;
use rules::{Rules, Way};

/// Says that this process is in a network namespace of its own.
const INSIDE: &str = "JEPSEN_ROUTER";

/// The programs that a network takes, and the Debian package of each.
const PROGRAMS: [(&str, &str); 6] = [
    ("unshare", "util-linux"),
    ("nsenter", "util-linux"),
    ("ip", "iproute2"),
    ("tc", "iproute2"),
    ("iptables-restore", "iptables"),
    ("tcpdump", "tcpdump"),
];

/// Runs this program again with the same arguments in a network namespace of
/// its own; `None`: it is in one already.
pub fn enter() -> Result<Option<ExitStatus>> {
    if std::env::var_os(INSIDE).is_some() {
        return Ok(None);
    }
    available()?;
    let this = std::env::current_exe().context("this program has no path")?;
    let status = Command::new("unshare")
        .args(["--net", "--"])
        .arg(this)
        .args(std::env::args_os().skip(1))
        .env(INSIDE, "1")
        .status()
        .context("unshare does not run")?;
    Ok(Some(status))
}

/// Whether this machine can make such a network.
fn available() -> Result<()> {
    for (program, package) in PROGRAMS {
        let found = Command::new(program)
            .arg("--help")
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status();
        if found.is_err() {
            let why = format!("{program} is missing; install {package}");
            return Err(Lacking::new(why));
        }
    }
    let made = Command::new("unshare")
        .args(["--net", "--", "true"])
        .stderr(Stdio::null())
        .status()?;
    if !made.success() {
        return Err(Lacking::new("network namespaces need root"));
    }
    Ok(())
}

/// A node's place in the network.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place {
    /// The number of its region, from 1 to 15.
    pub region: u8,
    /// Its number in the region, from 1 to 15.
    pub node: u8,
}

impl Place {
    /// Its address. Those of a region are a subnet.
    pub fn address(self) -> Ipv4Addr {
        Ipv4Addr::new(127, 77, self.subnet(), 2)
    }

    /// The router's address on the way to it.
    fn gateway(self) -> Ipv4Addr {
        Ipv4Addr::new(127, 77, self.subnet(), 1)
    }

    fn subnet(self) -> u8 {
        self.region * 16 + self.node
    }

    /// The router's interface on the way to it.
    pub fn interface(self) -> String {
        format!("to-{}-{}", self.region, self.node)
    }
}

/// Keeps a namespace alive.
struct Hold(Child);

impl Hold {
    fn new() -> Result<Hold> {
        // It says when the namespace is there, and ends with its input.
        let mut child = Command::new("unshare")
            .args(["--net", "--", "sh", "-c", "echo there; exec cat"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .context("unshare does not run")?;
        let mut there = [0; 6];
        let said = child.stdout.as_mut().context("it has an output")?;
        std::io::Read::read_exact(said, &mut there).context("there is no namespace")?;
        Ok(Hold(child))
    }

    fn path(&self) -> String {
        format!("/proc/{}/ns/net", self.0.id())
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        drop(self.0.stdin.take());
        drop(self.0.wait());
    }
}

/// The network. Dropping it ends it.
pub struct Network {
    holds: Vec<(Place, Hold)>,
    rules: Mutex<Rules>,
    delayer: Arc<Delayer>,
}

impl Network {
    /// Makes the network of these places. This process must be inside.
    pub fn new(places: &[Place]) -> Result<Network> {
        ensure!(
            std::env::var_os(INSIDE).is_some(),
            "the network is made in a namespace of its own"
        );
        prepare(&[])?;
        ip(&[], &["link", "set", "lo", "up"])?;
        own_loopback(&[])?;
        sysctl(&[], "net.ipv4.ip_forward=1")?;
        let mut holds = Vec::new();
        for place in places {
            holds.push((*place, join(*place)?));
        }
        let delayer = Delayer::start()?;
        Ok(Network {
            holds,
            rules: Mutex::new(Rules::default()),
            delayer,
        })
    }

    /// The arguments that begin a command which runs at a place.
    pub fn inside(&self, place: Place) -> Result<Vec<String>> {
        let held = self.holds.iter().find(|(held, _)| *held == place);
        let (_, hold) = held.context("there is no such place")?;
        Ok(vec![
            "nsenter".into(),
            format!("--net={}", hold.path()),
            "--".into(),
        ])
    }

    /// Changes how packets go from one place to another.
    pub fn set(&self, from: Place, to: Place, change: impl FnOnce(&mut Way)) {
        change(self.rules.lock().way(from, to));
    }

    /// Limits what a place may receive, in kilobits a second; `None`: nothing
    /// does.
    pub fn narrow(&self, place: Place, kbit: Option<u32>) -> Result<()> {
        rules::narrow(place, kbit)
    }

    /// Puts everything that was set into force at once.
    pub fn apply(&self) -> Result<()> {
        let rules = self.rules.lock();
        // First the delays: a packet that is queued before its delay is known
        // goes on at once.
        self.delayer.set(rules.delays());
        rules.apply()
    }

    /// Captures what goes from one region to others into a file.
    pub fn capture(&self, file: &std::path::Path) -> Result<Capture> {
        let places: Vec<Place> = self.holds.iter().map(|(place, _)| *place).collect();
        Capture::start(file, &places)
    }
}

/// Makes a namespace and its way to the router.
fn join(place: Place) -> Result<Hold> {
    let hold = Hold::new()?;
    let inside = ["nsenter".to_owned(), format!("--net={}", hold.path())];
    let inside: Vec<&str> = inside.iter().map(String::as_str).collect();
    let interface = place.interface();
    let pid = hold.0.id().to_string();
    ip(
        &[],
        &[
            "link", "add", &interface, "type", "veth", "peer", "name", "eth0", "netns", &pid,
        ],
    )?;
    let near = format!("{}/30", place.gateway());
    // Loopback addresses are of this host alone unless the scope says more.
    ip(
        &[],
        &["addr", "add", &near, "dev", &interface, "scope", "global"],
    )?;
    ip(&[], &["link", "set", &interface, "up"])?;
    prepare(&inside)?;
    ip(&inside, &["link", "set", "lo", "up"])?;
    own_loopback(&inside)?;
    let far = format!("{}/30", place.address());
    ip(
        &inside,
        &["addr", "add", &far, "dev", "eth0", "scope", "global"],
    )?;
    ip(&inside, &["link", "set", "eth0", "up"])?;
    let gateway = place.gateway().to_string();
    ip(&inside, &["route", "add", "127.77.0.0/16", "via", &gateway])?;
    Ok(hold)
}

/// Lets loopback addresses be routed in a namespace.
fn prepare(inside: &[&str]) -> Result<()> {
    for setting in ["all", "default"] {
        sysctl(inside, &format!("net.ipv4.conf.{setting}.route_localnet=1"))?;
        sysctl(inside, &format!("net.ipv4.conf.{setting}.rp_filter=0"))?;
    }
    Ok(())
}

/// Leaves the loopback interface one address of its own.
fn own_loopback(inside: &[&str]) -> Result<()> {
    ip(inside, &["addr", "del", "127.0.0.1/8", "dev", "lo"])?;
    ip(inside, &["addr", "add", "127.0.0.1/32", "dev", "lo"])
}

fn sysctl(inside: &[&str], setting: &str) -> Result<()> {
    run(inside, "sysctl", &["-qw", setting])
}

fn ip(inside: &[&str], arguments: &[&str]) -> Result<()> {
    run(inside, "ip", arguments)
}

/// Runs a program, in another namespace if `inside` says so.
fn run(inside: &[&str], program: &str, arguments: &[&str]) -> Result<()> {
    let mut words = inside.to_vec();
    words.push(program);
    words.extend(arguments);
    let output = Command::new(words[0])
        .args(&words[1..])
        .output()
        .with_context(|| format!("{program} does not run"))?;
    ensure!(
        output.status.success(),
        "{}: {}",
        words.join(" "),
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(())
}
