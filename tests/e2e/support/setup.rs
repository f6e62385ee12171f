//! How the binary is started: its file, what lies beside it, its environment and flags.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use tempfile::TempDir;

use super::gate::Gate;

/// How to start the binary.
pub struct Setup {
    yaml: String,
    files: Vec<(String, String)>,
    env: Vec<(String, String)>,
    level: &'static str,
    format: &'static str,
    before: &'static str,
    at: Option<PathBuf>,
    stderr: Option<Stdio>,
}

/// A file for the binary; what surrounds it is added step by step.
pub fn config(yaml: &str) -> Setup {
    Setup {
        yaml: yaml.to_owned(),
        files: Vec::new(),
        env: Vec::new(),
        level: "debug",
        format: "json",
        before: "",
        at: None,
        stderr: None,
    }
}

/// `listen` and `admin` on free ports, where the file does not say.
pub fn complete(yaml: &str) -> String {
    let mut whole = String::new();
    for field in ["listen", "admin"] {
        if !yaml.lines().any(|line| line.starts_with(&format!("{field}:"))) {
            whole += &format!("{field}: 127.0.0.1:0\n");
        }
    }
    whole + yaml
}

impl Setup {
    /// A file beside the main one.
    #[must_use]
    pub fn file(mut self, name: &str, content: &str) -> Self {
        self.files.push((name.to_owned(), content.to_owned()));
        self
    }

    #[must_use]
    pub fn env(mut self, name: &str, value: &str) -> Self {
        self.env.push((name.to_owned(), value.to_owned()));
        self
    }

    /// A file that is there already, as it stands.
    #[must_use]
    pub fn at(self, file: &Path) -> Self {
        Self { at: Some(file.to_owned()), ..self }
    }

    #[must_use]
    pub fn level(self, level: &'static str) -> Self {
        Self { level, ..self }
    }

    #[must_use]
    pub fn human(self) -> Self {
        Self { format: "human", ..self }
    }

    /// A shell command that comes first, such as `ulimit -n 64`.
    #[must_use]
    pub fn after(self, command: &'static str) -> Self {
        Self { before: command, ..self }
    }

    /// Where its log goes, of which the gate that comes of it sees nothing. It finds its admin address by the host.
    #[must_use]
    pub fn log_to(self, place: impl Into<Stdio>) -> Self {
        Self { stderr: Some(place.into()), yaml: format!("admin: 127.0.0.2:0\n{}", self.yaml), ..self }
    }

    #[track_caller]
    pub fn start(mut self) -> Gate {
        let dir = TempDir::new().unwrap();
        for (name, content) in &self.files {
            let path = dir.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, content).unwrap();
        }
        let file = self.at.clone().unwrap_or_else(|| {
            let file = dir.path().join("wsbouncer.yaml");
            fs::write(&file, complete(&self.yaml)).unwrap();
            file
        });
        let child = self
            .command()
            .args(["serve", "--log-format", self.format, "--log-level", self.level, "--config"])
            .arg(&file)
            .envs(std::mem::take(&mut self.env))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(self.stderr.take().unwrap_or_else(Stdio::piped))
            .spawn()
            .unwrap();
        Gate::follow(child, dir, file)
    }

    fn command(&self) -> Command {
        const BINARY: &str = env!("CARGO_BIN_EXE_wsbouncer");
        if self.before.is_empty() {
            return Command::new(BINARY);
        }
        let mut shell = Command::new("sh");
        shell.args(["-c", &format!("{}; exec \"$0\" \"$@\"", self.before), BINARY]);
        shell
    }
}
