//! What becomes of packets on their way: rules of the kernel's firewall.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::net::Ipv4Addr;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};

use super::{Place, run};

/// The queue of packets that are held back.
pub(super) const QUEUE: u16 = 77;

/// How packets go from one place to another.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Way {
    /// How many faults cut it.
    pub cuts: u32,
    /// How many faults answer what comes with a reset.
    pub resets: u32,
    /// How many of a hundred packets are lost.
    pub lost_percent: u32,
    /// How long each takes.
    pub delay: Duration,
    /// How much longer some take at most, so that they overtake each other.
    pub jitter: Duration,
}

/// The ways between all places.
#[derive(Debug, Default)]
pub(super) struct Rules {
    ways: BTreeMap<(Place, Place), Way>,
}

impl Rules {
    /// A way, to be changed.
    pub(super) fn way(&mut self, from: Place, to: Place) -> &mut Way {
        self.ways.entry((from, to)).or_default()
    }

    /// The delays of the ways that have any.
    pub(super) fn delays(&self) -> BTreeMap<(Ipv4Addr, Ipv4Addr), (Duration, Duration)> {
        let late = self.ways.iter().filter(|(_, way)| way.is_late());
        late.map(|((from, to), way)| {
            let ends = (from.address(), to.address());
            (ends, (way.delay, way.jitter))
        })
        .collect()
    }

    /// Puts all rules into force in one step.
    pub(super) fn apply(&self) -> Result<()> {
        let mut child = Command::new("iptables-restore")
            .stdin(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .context("iptables-restore does not run")?;
        let mut input = child.stdin.take().context("it has an input")?;
        input.write_all(self.text().as_bytes())?;
        drop(input);
        let output = child.wait_with_output()?;
        ensure!(
            output.status.success(),
            "the rules were not taken: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        Ok(())
    }

    fn text(&self) -> String {
        let mut text = String::from("*filter\n:FORWARD ACCEPT\n");
        for ((from, to), way) in &self.ways {
            let ends = format!("-A FORWARD -s {} -d {}", from.address(), to.address());
            let mut rule = |rest: &str| {
                text.push_str(&format!("{ends} {rest}\n"));
            };
            if way.cuts > 0 {
                rule("-j DROP");
            }
            if way.resets > 0 {
                rule("-p tcp -j REJECT --reject-with tcp-reset");
            }
            if way.lost_percent > 0 {
                let share = f64::from(way.lost_percent) / 100.0;
                rule(&format!(
                    "-m statistic --mode random --probability {share} -j DROP"
                ));
            }
            if way.is_late() {
                rule(&format!("-j NFQUEUE --queue-num {QUEUE} --queue-bypass"));
            }
        }
        text.push_str("COMMIT\n");
        text
    }
}

impl Way {
    fn is_late(&self) -> bool {
        !(self.delay + self.jitter).is_zero()
    }
}

/// Limits what a place may receive.
pub(super) fn narrow(place: Place, kbit: Option<u32>) -> Result<()> {
    let interface = place.interface();
    match kbit {
        Some(kbit) => {
            let rate = format!("{kbit}kbit");
            let qdisc = ["qdisc", "replace", "dev", &interface, "root", "tbf"];
            let limits = ["rate", &rate, "burst", "32kbit", "latency", "400ms"];
            run(&[], "tc", &[&qdisc[..], &limits[..]].concat())
        }
        None => run(&[], "tc", &["qdisc", "del", "dev", &interface, "root"]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_condition_has_its_rule_and_a_sound_way_none() {
        let (a, b) = (Place { region: 1, node: 1 }, Place { region: 2, node: 3 });
        let mut rules = Rules::default();
        rules.way(b, a);
        *rules.way(a, b) = Way {
            cuts: 1,
            resets: 1,
            lost_percent: 30,
            delay: Duration::from_millis(40),
            jitter: Duration::ZERO,
        };
        let text = rules.text();
        let lines: Vec<&str> = text.lines().filter(|l| l.starts_with("-A")).collect();
        assert_eq!(lines.len(), 4, "{text}");
        let ends = "-A FORWARD -s 127.77.17.2 -d 127.77.35.2 ";
        assert!(lines.iter().all(|line| line.starts_with(ends)), "{text}");
        assert!(lines[2].contains("--probability 0.3 "), "{text}");
        assert_eq!(rules.delays().len(), 1);
    }
}
