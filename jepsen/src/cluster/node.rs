//! One process of the product.

use std::fs::{self, File};
use std::io::{PipeReader, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};

use super::STEP;
use super::certificates::Certificates;
use super::ended::Broken;
use super::programs::{Programs, free_address, last_lines};

/// How long a node may take to answer after it was started.
const START_WAIT: Duration = Duration::from_secs(20);

/// One node: its configuration, its data, and its process if it runs.
pub struct Node {
    programs: Programs,
    /// The region of the node.
    pub region: String,
    /// The number of the node.
    pub number: usize,
    /// `host:port`.
    pub address: String,
    /// Where it stores everything.
    pub data: PathBuf,
    /// Where callers of other regions find it: region and `host:port`.
    pub callers: Vec<(String, String)>,
    folder: PathBuf,
    /// What begins the command, so that it runs in another namespace.
    inside: Vec<String>,
    settings: Vec<String>,
    environment: Vec<(String, String)>,
    log_to: LogTo,
    /// The end of the log's pipe that is not read.
    unread: Option<PipeReader>,
    process: Option<Child>,
}

/// Where the messages of a node go.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LogTo {
    /// To its file.
    #[default]
    File,
    /// To a pipe that is full, and that nobody reads.
    UnreadPipe,
    /// To a pipe without a reader.
    PipeWithoutReader,
}

/// How clients call nodes.
#[derive(Clone, Debug)]
pub struct Endpoints {
    /// Where they are.
    pub urls: Vec<String>,
    /// The directory of the callers' certificate; `None`: there is no TLS.
    pub certificate: Option<PathBuf>,
}

impl Endpoints {
    /// Each of them alone.
    pub fn each(&self) -> impl Iterator<Item = Endpoints> {
        self.urls.iter().map(|url| Endpoints {
            urls: vec![url.clone()],
            certificate: self.certificate.clone(),
        })
    }
}

/// Where a node runs.
#[derive(Clone, Debug)]
pub struct Seat {
    /// `host:port`.
    pub address: String,
    /// Where callers of other regions find it: region and `host:port`.
    pub callers: Vec<(String, String)>,
    /// Where it stores everything.
    pub data: PathBuf,
    /// What begins the command, so that it runs in another namespace; empty:
    /// this one.
    pub inside: Vec<String>,
}

impl Node {
    /// A node that is not started, on a free port of this machine.
    pub fn new(programs: &Programs, folder: &Path, region: &str, number: usize) -> Result<Node> {
        let seat = Seat {
            address: free_address()?,
            callers: Vec::new(),
            data: folder.join(format!("{region}-{number}")),
            inside: Vec::new(),
        };
        Ok(Node::seated(programs, folder, (region, number), seat))
    }

    /// A node that is not started. Its log goes to `folder`.
    pub fn seated(
        programs: &Programs,
        folder: &Path,
        (region, number): (&str, usize),
        seat: Seat,
    ) -> Node {
        Node {
            programs: programs.clone(),
            region: region.to_owned(),
            number,
            address: seat.address,
            callers: seat.callers,
            data: seat.data,
            folder: folder.to_owned(),
            inside: seat.inside,
            settings: Vec::new(),
            environment: Vec::new(),
            log_to: LogTo::default(),
            unread: None,
            process: None,
        }
    }

    /// The URL that clients use.
    pub fn endpoint(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Where its messages go.
    pub fn log(&self) -> PathBuf {
        match self.region.as_str() {
            "eu" => self.folder.join(format!("node-{}.log", self.number)),
            region => self.folder.join(format!("{region}-{}.log", self.number)),
        }
    }

    /// How long its log is now.
    pub fn log_end(&self) -> usize {
        fs::metadata(self.log()).map_or(0, |log| log.len() as usize)
    }

    /// What its log says behind `from`.
    pub fn said(&self, from: usize) -> String {
        let log = fs::read(self.log()).unwrap_or_default();
        String::from_utf8_lossy(log.get(from..).unwrap_or_default()).into_owned()
    }

    /// Adds a setting for the next start, as `key=value`.
    pub fn set(&mut self, setting: &str) {
        self.settings.push(setting.to_owned());
    }

    /// Sets an environment variable for the next start.
    pub fn env(&mut self, name: &str, value: &str) {
        self.environment.push((name.to_owned(), value.to_owned()));
    }

    /// Says where its messages go from the next start on.
    pub fn log_to(&mut self, log_to: LogTo) {
        self.log_to = log_to;
    }

    /// Limits the files that it may open from the next start on.
    pub fn limit_files(&mut self, files: u64) {
        let limit = format!("ulimit -n {files}; exec \"$0\" \"$@\"");
        self.inside.extend(["sh".into(), "-c".into(), limit]);
    }

    /// What the messages of a start go to.
    fn stderr(&mut self) -> Result<Stdio> {
        if self.log_to == LogTo::File {
            let log = File::options().create(true).append(true).open(self.log());
            return Ok(log.context("the log of a node cannot be written")?.into());
        }
        let (reader, writer) = std::io::pipe().context("there is no pipe")?;
        if self.log_to == LogTo::UnreadPipe {
            let mut filling = writer.try_clone()?;
            // It stays in its last write until nobody can read any more.
            std::thread::spawn(move || while filling.write_all(&[b'.'; 4096]).is_ok() {});
            std::thread::sleep(STEP);
            self.unread = Some(reader);
        }
        Ok(writer.into())
    }

    /// The arguments that say who it is.
    fn identity(&self) -> Result<Vec<String>> {
        let Some(certificates) = self.programs.certificates() else {
            return Ok(vec!["--set".into(), "insecure_dev=true".into()]);
        };
        let directory = certificates.of_node(&self.region, self.number);
        let operator = Certificates::operator(&self.region)?;
        Ok(vec![
            "--set".into(),
            format!("tls_dir={}", directory.display()),
            "--set".into(),
            format!("operators={operator}"),
        ])
    }

    /// How clients call it.
    pub fn endpoints(&self) -> Endpoints {
        self.programs.endpoints([self])
    }

    /// Starts the process. It may still refuse; see [`Node::wait_exit`].
    pub fn start(&mut self) -> Result<()> {
        ensure!(self.process.is_none(), "node {} runs already", self.number);
        let stderr = self.stderr()?;
        let program = self.programs.folder.join("domiciled");
        let mut command = match self.inside.split_first() {
            Some((first, rest)) => {
                let mut command = Command::new(first);
                command.args(rest).arg(program);
                command
            }
            None => Command::new(program),
        };
        command
            .args(["run", "--node", &self.number.to_string()])
            .args(["--region", &self.region])
            .args(["--listen", &self.address])
            .arg("--data-dir")
            .arg(&self.data)
            .args(self.identity()?)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(stderr)
            .envs(self.environment.iter().map(|(n, v)| (n, v)));
        if !self.callers.is_empty() {
            let callers = self.callers.iter();
            let callers: Vec<_> = callers.map(|(r, a)| format!("{r}={a}")).collect();
            command.args(["--set", &format!("callers={}", callers.join(","))]);
        }
        for setting in &self.settings {
            command.args(["--set", setting]);
        }
        self.process = Some(command.spawn().context("domiciled does not start")?);
        Ok(())
    }

    /// The process id; `None`: it does not run.
    pub fn pid(&self) -> Option<u32> {
        self.process.as_ref().map(Child::id)
    }

    /// Begins to end the process at once; [`Node::kill`] waits for it.
    pub fn strike(&mut self) {
        if let Some(process) = &mut self.process {
            // It may have ended by itself.
            drop(process.kill());
        }
    }

    /// Ends the process at once, as `kill -9` does, and waits for it.
    pub fn kill(&mut self) {
        if let Some(mut process) = self.process.take() {
            // It may have ended by itself; then there is nothing to kill.
            drop(process.kill());
            drop(process.wait());
        }
    }

    /// Sends the process a signal by name, such as `STOP`.
    pub fn signal(&self, name: &str) -> Result<()> {
        let pid = self.pid().context("the node does not run")?;
        let status = Command::new("kill")
            .arg(format!("-{name}"))
            .arg(pid.to_string())
            .status()
            .context("kill does not run")?;
        ensure!(status.success(), "signal {name} was not taken");
        Ok(())
    }

    /// Waits for the process to end by itself; `None`: it still runs.
    pub fn wait_exit(&mut self, wait: Duration) -> Result<Option<i32>> {
        let mut waited = Duration::ZERO;
        loop {
            if let Some(process) = &mut self.process
                && let Some(status) = process.try_wait()?
            {
                self.process = None;
                return Ok(Some(status.code().unwrap_or(-1)));
            }
            if waited >= wait {
                return Ok(None);
            }
            std::thread::sleep(STEP);
            waited += STEP;
        }
    }

    /// Waits until the node answers, in whatever state.
    pub fn wait_up(&mut self) -> Result<()> {
        let mut waited = Duration::ZERO;
        while waited < START_WAIT {
            if let Some(code) = self.wait_exit(Duration::ZERO)? {
                return Err(Broken::new(format!(
                    "node {} ended with {code}: {}",
                    self.number,
                    last_lines(&self.log())
                )));
            }
            let answer = self
                .programs
                .domicile(&self.endpoint(), &["-o", "json", "cluster", "status"])?;
            if answer.status.success() {
                return Ok(());
            }
            std::thread::sleep(STEP);
            waited += STEP;
        }
        let what = format!("node {} does not answer", self.number);
        Err(Broken::new(what))
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        self.kill();
    }
}
