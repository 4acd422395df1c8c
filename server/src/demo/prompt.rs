//! Reads commands and does them.

use std::path::PathBuf;
use std::process::Stdio;

use anyhow::{Context as _, Result, anyhow};
use domicile_proto::address::RegionName;
use rustyline::completion::Completer;
use rustyline::error::ReadlineError;
use rustyline::{Editor, Helper, Highlighter, Hinter, Validator};
use tokio::process::Command as Process;

use super::cluster::Cluster;
use super::command::{Command, Expected, HELP};
use super::guide;
use crate::console::print;

/// The program that serves what is not the demo's own.
const PROGRAM: &str = "domicile";

/// What a line came to.
#[derive(Debug, Default)]
struct Done {
    /// The exit code of the program, or 0, or 1.
    code: u8,
    /// What was printed.
    text: String,
    /// Whether the user leaves.
    leaves: bool,
}

impl Done {
    fn said(text: impl Into<String>) -> Done {
        Done {
            text: text.into(),
            ..Done::default()
        }
    }
}

/// Reads and does commands until the user leaves.
pub(super) async fn interact(cluster: &mut Cluster) -> Result<u8> {
    let home = home(cluster)?;
    let words = words(cluster);
    let _restored = Terminal::save();
    let mut editor: Editor<Words, _> = Editor::new().context("there is no terminal")?;
    editor.set_helper(Some(Words { words }));
    loop {
        // Reading blocks; the cluster goes on meanwhile.
        let read = tokio::task::spawn_blocking(move || {
            let line = editor.readline("domicile> ");
            (editor, line)
        });
        let (back, line) = read.await.context("the prompt ended")?;
        editor = back;
        let line = match line {
            Ok(line) => line,
            Err(ReadlineError::Interrupted) => continue,
            Err(ReadlineError::Eof) => break,
            Err(error) => return Err(error.into()),
        };
        if !line.trim().is_empty() {
            editor.add_history_entry(line.as_str())?;
        }
        match perform(cluster, &home, &line).await {
            Ok(done) => {
                print(&done.text)?;
                if done.leaves {
                    break;
                }
            }
            Err(error) => print(&format!("{error:#}\n"))?,
        }
    }
    print("stopping\n")?;
    Ok(0)
}

/// The settings of the terminal, which go back when this is dropped: a prompt
/// that is left by a signal has changed them.
struct Terminal {
    settings: Option<String>,
}

impl Terminal {
    fn save() -> Terminal {
        let told = stty().arg("-g").output().ok();
        let told = told.filter(|told| told.status.success());
        let settings = told.and_then(|told| String::from_utf8(told.stdout).ok());
        Terminal { settings }
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        if let Some(settings) = &self.settings {
            // Where there is no terminal any more there is nothing to mend.
            stty().arg(settings.trim()).status().ok();
        }
    }
}

fn stty() -> std::process::Command {
    let mut stty = std::process::Command::new("stty");
    stty.stderr(Stdio::null());
    stty
}

/// Does the lines of a script. Answers 0, or 1 at the first line that did not
/// come to what it should.
pub(super) async fn execute(cluster: &mut Cluster, script: &str) -> Result<u8> {
    let home = home(cluster)?;
    let mut failed = false;
    for (number, line) in (1..).zip(script.lines()) {
        if line.trim().is_empty() {
            continue;
        }
        print(&format!("demo> {line}\n"))?;
        let (expected, command) = Expected::read(line)?;
        let began = cluster.env().now();
        let done = match perform(cluster, &home, command).await {
            Ok(done) => done,
            Err(error) => Done {
                code: 1,
                text: format!("{error:#}\n"),
                leaves: false,
            },
        };
        print(&done.text)?;
        let took = cluster.env().now().duration_since(began);
        if !expected.is_met(done.code, &done.text, took) {
            print(&format!(
                "line {number}: exit {} after {took:?}, {expected}\n",
                done.code
            ))?;
            failed = true;
        }
        if done.leaves || failed {
            break;
        }
    }
    Ok(u8::from(failed))
}

/// Where callers are who say nothing.
fn home(cluster: &Cluster) -> Result<RegionName> {
    let mut regions = cluster.regions().into_iter();
    let eu = regions.find(|region| region.as_str() == "eu");
    eu.ok_or_else(|| anyhow!("there is no region eu"))
}

async fn perform(cluster: &mut Cluster, home: &RegionName, line: &str) -> Result<Done> {
    let command = Command::read(line, home)?;
    Ok(match command {
        Command::Nothing => Done::default(),
        Command::Help => Done::said(format!("{HELP}\n")),
        Command::Exit => Done {
            leaves: true,
            ..Done::default()
        },
        Command::Status => status(cluster, home).await?,
        Command::Kill(name) => {
            cluster.kill(&name)?;
            Done::said(format!("{name} is dead\n"))
        }
        Command::KillLeader(tag) => {
            let regions = cluster.regions();
            let mut leaders = regions.iter().filter_map(|r| cluster.leader(&tag, r));
            // The home's region comes before its mirrors in no order that is
            // known here, so the home is asked for by name.
            let leader = cluster.leader(&tag, home).or_else(|| leaders.next());
            let name = leader.ok_or_else(|| anyhow!("no running node leads {tag}"))?;
            cluster.kill(&name)?;
            Done::said(format!("{name}, which led {tag}, is dead\n"))
        }
        Command::Restart(name) => {
            cluster.restart(&name).await?;
            Done::said(format!("{name} runs\n"))
        }
        Command::RestartAll => {
            let dead: Vec<_> = cluster
                .nodes()
                .filter(|(_, runs)| !runs)
                .map(|(name, _)| name.clone())
                .collect();
            let mut text = String::new();
            for name in dead {
                cluster.restart(&name).await?;
                text.push_str(&format!("{name} runs\n"));
            }
            Done::said(text)
        }
        Command::Partition(one, other) => {
            set_cut(cluster, true, |a, b| {
                (*a == one && *b == other) || (*a == other && *b == one)
            })?;
            Done::said(guide::distances(cluster))
        }
        Command::Isolate(one) => {
            set_cut(cluster, true, |a, b| *a == one || *b == one)?;
            Done::said(guide::distances(cluster))
        }
        Command::Heal => {
            set_cut(cluster, false, |_, _| true)?;
            Done::said(guide::distances(cluster))
        }
        Command::Sleep(time) => {
            tokio::time::sleep(time).await;
            Done::default()
        }
        Command::Domicile { from, arguments } => {
            let endpoints = cluster.endpoints(&from);
            if endpoints.is_empty() {
                return Err(anyhow!("there is no region {from}"));
            }
            domicile(cluster, &from, &endpoints, &arguments).await?
        }
    })
}

/// Cuts or mends the links that are meant.
fn set_cut(
    cluster: &Cluster,
    cut: bool,
    is_meant: impl Fn(&RegionName, &RegionName) -> bool,
) -> Result<()> {
    let mut any = false;
    for ((from, to), link) in cluster.links().all() {
        if is_meant(from, to) {
            link.set(|condition| condition.cut = cut);
            any = true;
        }
    }
    match any {
        true => Ok(()),
        false => Err(anyhow!("there is no such region; they are eu, us and ap")),
    }
}

/// Nodes, links and mirrors.
async fn status(cluster: &Cluster, home: &RegionName) -> Result<Done> {
    let mut text = guide::distances(cluster);
    for (name, runs) in cluster.nodes() {
        text.push_str(&format!("  {name}  {}\n", if runs { "up" } else { "DEAD" }));
    }
    let mut endpoints = Vec::new();
    for region in cluster.regions() {
        let up = cluster.nodes().filter(|(n, up)| *up && n.region == region);
        let count = up.count();
        endpoints.extend(cluster.endpoints(&region).into_iter().take(count));
    }
    for what in [["cluster", "status"], ["replication", "status"]] {
        let arguments = what.map(str::to_owned);
        let asked = match what[0] {
            "replication" => endpoints.clone(),
            _ => cluster.endpoints(home),
        };
        text.push_str(&domicile(cluster, home, &asked, &arguments).await?.text);
    }
    Ok(Done::said(text))
}

/// Runs the program as a caller of a region that knows these nodes. What it says is
/// shown as it comes to the end.
async fn domicile(
    cluster: &Cluster,
    from: &RegionName,
    endpoints: &[String],
    arguments: &[String],
) -> Result<Done> {
    let certificate = cluster.certificates().of_callers(from);
    let output = Process::new(program()?)
        .args(arguments)
        .env("DOMICILE_CLIENT_TLS_DIR", certificate)
        .env("DOMICILE_ENDPOINTS", endpoints.join(","))
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output()
        .await
        .context("the program `domicile` did not run")?;
    let mut text = String::from_utf8_lossy(&output.stdout).into_owned();
    text.push_str(&String::from_utf8_lossy(&output.stderr));
    if !text.is_empty() && !text.ends_with('\n') {
        text.push('\n');
    }
    let code = output.status.code().unwrap_or(1);
    Ok(Done {
        code: u8::try_from(code).unwrap_or(1),
        text,
        leaves: false,
    })
}

/// The program beside this one, or the one on the path.
fn program() -> Result<PathBuf> {
    let this = std::env::current_exe().context("this program is not found")?;
    let beside = this.with_file_name(PROGRAM);
    Ok(match beside.is_file() {
        true => beside,
        false => PathBuf::from(PROGRAM),
    })
}

/// What the prompt completes.
fn words(cluster: &Cluster) -> Vec<String> {
    let mut words: Vec<String> = [
        "get",
        "put",
        "delete",
        "scan",
        "status",
        "audit run",
        "kill",
        "kill leader",
        "restart",
        "restart all",
        "partition",
        "isolate",
        "heal",
        "sleep",
        "help",
        "exit",
        "--from",
        "--level local",
        "--ack regions=",
        "placement matrix",
        "replication status",
        "region list",
        "node list",
        "cluster status",
        "policy show",
        "explain",
        "global/",
        "eu-only/",
        "us-only/",
        "eu-shared/",
    ]
    .map(str::to_owned)
    .into();
    words.extend(cluster.nodes().map(|(name, _)| name.to_string()));
    words.extend(cluster.regions().iter().map(ToString::to_string));
    words
}

/// Completes the word under the cursor.
#[derive(Helper, Hinter, Highlighter, Validator)]
struct Words {
    words: Vec<String>,
}

impl Completer for Words {
    type Candidate = String;

    fn complete(
        &self,
        line: &str,
        at: usize,
        _: &rustyline::Context<'_>,
    ) -> rustyline::Result<(usize, Vec<String>)> {
        let start = line[..at].rfind(' ').map_or(0, |space| space + 1);
        let typed = &line[start..at];
        let fits = self.words.iter().filter(|word| word.starts_with(typed));
        Ok((start, fits.cloned().collect()))
    }
}
