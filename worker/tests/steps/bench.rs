//! One worker, one repository, and bakes of it.

use std::collections::BTreeMap;
use std::fs;
use std::io::{Read, Write};
use std::net::TcpListener;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use anyhow::{Context, Result, bail, ensure};
use camino::{Utf8Path, Utf8PathBuf};
use oast_model::bake::{BakedImage, Layer, Trust};
use oast_model::task::{NamedImage, Outcome, Work};

use crate::farm::{Farm, Running, baked, git, source_of};

/// What is served: path and content.
type Pages = Arc<Mutex<BTreeMap<String, Vec<u8>>>>;

pub struct Bench {
    pub farm: Farm,
    pub web: String,
    repository: Utf8PathBuf,
    pages: Pages,
    _worker: Running,
}

/// What a bake is given besides its pipeline.
#[derive(Default)]
pub struct Given {
    pub secrets: BTreeMap<String, String>,
    pub trust: Option<Trust>,
    pub images: Vec<NamedImage>,
}

pub struct Done {
    pub outcome: Outcome,
    pub log: String,
    /// Place, whether it was known, layer.
    pub steps: Vec<(u16, bool, Layer)>,
    data: Utf8PathBuf,
}

impl Bench {
    pub async fn new(root: &Utf8Path) -> Result<Bench> {
        let pages = Pages::default();
        let port = serve(pages.clone())?;
        let mut farm = Farm::new(root).await?;
        farm.more = format!("[bake]\nproxy_allow = [\"127.0.0.1:{port}\"]\n");
        farm.source = format!("policy_file = \"{root}/policies.yaml\"\n");
        fs::write(root.join("policies.yaml"), "")?;
        let worker = farm.start(&[farm.leader.address])?;
        let repository = root.join("repository");
        fs::create_dir_all(&repository)?;
        git(&repository, &["init", "--quiet", "--initial-branch=main"])?;
        Ok(Bench {
            farm,
            web: format!("http://127.0.0.1:{port}"),
            repository,
            pages,
            _worker: worker,
        })
    }

    /// Writes the operator's policies.
    pub fn policy(&self, text: &str) -> Result<()> {
        Ok(fs::write(self.farm.root.join("policies.yaml"), text)?)
    }

    /// Serves a page from now on.
    pub fn serve(&self, path: &str, body: Vec<u8>) {
        let mut pages = self.pages.lock().expect("no test panics with it");
        pages.insert(path.to_owned(), body);
    }

    /// Writes a file of the repository.
    pub fn file(&self, path: &str, text: impl AsRef<[u8]>) -> Result<()> {
        let path = self.repository.join(path);
        fs::create_dir_all(path.parent().context("a folder")?)?;
        Ok(fs::write(path, text)?)
    }

    /// Bakes the steps on Debian 12, at line 8 of the pipeline file and after.
    pub async fn bake(&self, steps: &str) -> Result<Done> {
        self.bake_with(steps, Given::default()).await
    }

    pub async fn bake_with(&self, steps: &str, given: Given) -> Result<Done> {
        self.bake_from("debian-12", steps, given).await
    }

    pub async fn bake_from(&self, base: &str, steps: &str, given: Given) -> Result<Done> {
        let text = format!(
            "apiVersion: oast/v1\nname: web\nteam: demo\ntriggers: [{{ git: {{}} }}]\nbake:\n  from: {base}\n  steps:\n{steps}publish: {{ image: web, channel: candidate }}\n"
        );
        self.bake_file(&text, given).await
    }

    /// Puts an example's files into the repository and bakes its pipeline.
    pub async fn example(&self, name: &str) -> Result<Done> {
        let from = format!("{}/../examples/{name}/.", env!("CARGO_MANIFEST_DIR"));
        let copied = std::process::Command::new("cp")
            .args(["-R", "--preserve=mode", &from, self.repository.as_str()])
            .status()?;
        ensure!(copied.success(), "cp");
        let text = fs::read_to_string(self.repository.join("oast.yaml"))?;
        self.bake_file(&text, Given::default()).await
    }

    async fn bake_file(&self, text: &str, given: Given) -> Result<Done> {
        self.file("oast.yaml", text)?;
        git(&self.repository, &["add", "-A"])?;
        git(
            &self.repository,
            &["commit", "--quiet", "--allow-empty", "-m", "x"],
        )?;
        let source = match self.farm.source(&self.repository, None).await? {
            outcome @ Outcome::Succeeded(_) => source_of(outcome)?,
            outcome => {
                return Ok(Done {
                    outcome,
                    log: text.to_owned(),
                    steps: Vec::new(),
                    data: self.farm.root.join("data"),
                });
            }
        };
        let mut assignment = self.farm.bake(&source, Vec::new());
        assignment.secrets = given.secrets;
        if let Work::Bake { trust, images, .. } = &mut assignment.work {
            *trust = given.trust.unwrap_or(Trust::Protected);
            *images = given.images;
        }
        self.farm.leader.assign(&assignment).await?;
        let outcome = self.farm.leader.outcome(assignment.token).await?;
        Ok(Done {
            outcome,
            log: self.farm.log(&assignment)?,
            steps: self.farm.steps(assignment.token),
            data: self.farm.root.join("data"),
        })
    }
}

impl Done {
    pub fn image(&self) -> Result<BakedImage> {
        baked(self.outcome.clone()).with_context(|| self.log.clone())
    }

    /// Why it failed, with the details.
    pub fn failure(&self) -> Result<String> {
        match &self.outcome {
            Outcome::Failed { reason, details } => Ok(format!("{reason}\n{}", details.join("\n"))),
            other => bail!("no failure: {other:?}\n{}", self.log),
        }
    }

    /// Places of the steps that were done.
    pub fn made(&self) -> Vec<u16> {
        let made = self.steps.iter().filter(|(_, known, _)| !known);
        made.map(|(place, ..)| *place).collect()
    }

    /// The folder of a step's layer; it exists once a later step or the disk needed it.
    pub fn layer(&self, place: u16) -> Result<Utf8PathBuf> {
        let step = self.steps.iter().find(|(at, ..)| *at == place);
        let (_, _, layer) = step.with_context(|| format!("step {place}: {}", self.log))?;
        let folder = self.data.join(format!("layers/{}", layer.manifest));
        ensure!(folder.exists(), "{folder} is not there\n{}", self.log);
        Ok(folder)
    }

    pub fn text(&self, place: u16, path: &str) -> Result<String> {
        let path = self.layer(place)?.join(path);
        fs::read_to_string(&path).with_context(|| format!("{path}\n{}", self.log))
    }

    /// Files (with their folders) of a step's layer.
    pub fn files(&self, place: u16) -> Result<Vec<String>> {
        let root = self.layer(place)?;
        let mut found = Vec::new();
        let mut folders = vec![PathBuf::from(&root)];
        while let Some(folder) = folders.pop() {
            for entry in fs::read_dir(&folder)? {
                let entry = entry?;
                let path = entry.path();
                found.push(path.strip_prefix(&root)?.display().to_string());
                if entry.file_type()?.is_dir() {
                    folders.push(path);
                }
            }
        }
        found.sort();
        Ok(found)
    }
}

pub fn contains(text: &str, wanted: &[&str]) -> Result<()> {
    for wanted in wanted {
        ensure!(text.contains(wanted), "{wanted:?} is not in:\n{text}");
    }
    Ok(())
}

/// Serves the pages for as long as this process lives.
fn serve(pages: Pages) -> Result<u16> {
    let listener = TcpListener::bind(("127.0.0.1", 0))?;
    let port = listener.local_addr()?.port();
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let mut stream = stream;
            let mut head = Vec::new();
            let mut buffer = [0; 4096];
            while !head.windows(4).any(|end| end == b"\r\n\r\n") {
                match stream.read(&mut buffer) {
                    Ok(read @ 1..) => head.extend_from_slice(&buffer[..read]),
                    _ => break,
                }
            }
            let head = String::from_utf8_lossy(&head).into_owned();
            let path = head.split(' ').nth(1).unwrap_or_default();
            let page = pages
                .lock()
                .expect("no test panics with it")
                .get(path)
                .cloned();
            let (status, body) = match page {
                Some(body) => ("200 OK", body),
                None => ("404 Not Found", b"no".to_vec()),
            };
            let answer = format!(
                "HTTP/1.1 {status}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
                body.len()
            );
            let _ = stream
                .write_all(answer.as_bytes())
                .and_then(|()| stream.write_all(&body));
        }
    });
    Ok(port)
}
