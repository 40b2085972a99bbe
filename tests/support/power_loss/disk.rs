//! A disk that keeps what was synced and nothing else for certain.
//!
//! The strictest reading of POSIX: a file's bytes survive when an fsync or fdatasync that was begun after the write
//! succeeded; its size only by fsync; a name (new, changed or gone) only by an fsync of its folder. Of everything else any
//! part may have reached the disk, sector by sector and name by name, in whatever order.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs;
use std::path::{Path, PathBuf};

use super::file::{Change, FileNode, apply};
use super::trace::{Call, Event};
use crate::support::attacked::Dice;

/// What a power loss leaves of what was not synced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Survives {
    /// Nothing at all.
    Nothing,
    /// Everything: no power loss, only the end of the process.
    Everything,
    /// All names, no bytes.
    Names,
    /// All bytes, no names.
    Bytes,
    /// About half of the sectors of this size, and half of the names.
    Torn { sector: u64 },
}

impl Survives {
    pub const ALL: [Self; 6] = [
        Self::Nothing,
        Self::Torn { sector: 512 },
        Self::Names,
        Self::Torn { sector: 4096 },
        Self::Bytes,
        Self::Everything,
    ];
}

/// Syncs that are passed over, so that an audit must find something.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Doctored {
    /// The trace as it is.
    No,
    /// No folder is ever synced.
    NoFolderSync,
    /// The folder's sync right after a file was given its bare name is left out.
    NoFolderSyncAfterPublishing,
    /// The content's sync right before a file is given its bare name is left out.
    NoSyncBeforePublishing,
    /// No file's content is ever synced.
    NoContentSync,
}

#[derive(Debug)]
enum Node {
    File(FileNode),
    Folder(FolderNode),
}

#[derive(Debug, Default)]
struct FolderNode {
    durable: BTreeMap<String, usize>,
    pending: Vec<(usize, NameChange)>,
}

#[derive(Clone, Debug)]
enum NameChange {
    Set(String, usize),
    Remove(String),
    Move(String, String, usize),
}

#[derive(Clone, Copy, Debug)]
struct Descriptor {
    node: usize,
    position: u64,
    append: bool,
}

/// The model, fed event by event.
#[derive(Debug)]
pub struct Disk {
    roots: Vec<PathBuf>,
    nodes: Vec<Node>,
    /// What everybody sees now.
    paths: BTreeMap<PathBuf, usize>,
    descriptors: HashMap<i64, Descriptor>,
    running: HashMap<usize, (Call, usize)>,
    clock: usize,
    doctored: Doctored,
    published: bool,
    /// Events that changed what names there are, so far.
    pub names_changed: usize,
    pub syncs: usize,
    pub failed_syncs: usize,
}

impl Disk {
    /// A disk whose folders `roots` are there and have nothing in them.
    pub fn new(roots: &[PathBuf], doctored: Doctored) -> Self {
        let mut disk = Self {
            roots: roots.to_vec(),
            nodes: Vec::new(),
            paths: BTreeMap::new(),
            descriptors: HashMap::new(),
            running: HashMap::new(),
            clock: 0,
            doctored,
            published: false,
            names_changed: 0,
            syncs: 0,
            failed_syncs: 0,
        };
        for root in roots {
            disk.nodes.push(Node::Folder(FolderNode::default()));
            disk.paths.insert(root.clone(), disk.nodes.len() - 1);
        }
        disk
    }

    /// Takes in the next event.
    pub fn happens(&mut self, event: &Event) {
        self.clock += 1;
        match event {
            Event::Begin(number, call) => {
                if let Call::Close { fd } = call {
                    // Before the kernel can give the number to somebody else.
                    self.descriptors.remove(fd);
                }
                self.running.insert(*number, (call.clone(), self.clock));
            }
            Event::End(number, result) => {
                if let Some((call, begun)) = self.running.remove(number) {
                    match result {
                        Some(result) if *result >= 0 => self.succeeded(call, *result, begun),
                        Some(_) => self.failed(call),
                        None => self.unknown(call),
                    }
                }
            }
            Event::NewProcess => {
                self.descriptors.clear();
                let left: Vec<Call> = self.running.drain().map(|(_, (call, _))| call).collect();
                left.into_iter().for_each(|call| self.unknown(call));
            }
            Event::Told { .. } | Event::Asked { .. } => {}
        }
    }

    /// A failed fsync leaves pages that were not written and look clean: no later one of the same file brings them back.
    fn failed(&mut self, call: Call) {
        if let Call::Sync { fd, .. } = call
            && let Some(descriptor) = self.descriptors.get(&fd)
            && let Node::File(file) = &mut self.nodes[descriptor.node]
        {
            file.forgotten.append(&mut file.pending);
            self.failed_syncs += 1;
        }
    }

    /// The process was killed in the call: written bytes may be there, and count as not synced; names are left as they were.
    fn unknown(&mut self, call: Call) {
        if let Call::Write { fd, at: Some(at), bytes } = call
            && let Some(descriptor) = self.descriptors.get(&fd).copied()
        {
            self.change(descriptor.node, Change::Write { at, bytes });
        }
    }

    fn succeeded(&mut self, call: Call, result: i64, begun: usize) {
        match call {
            Call::Open { path, create, exclusive: _, truncate, append } => {
                if !self.inside(&path) {
                    // A file that the model does not follow.
                    self.descriptors.remove(&result);
                    return;
                }
                let node = match self.paths.get(&path) {
                    Some(&node) => node,
                    None if create => self.add(&path, Node::File(FileNode::default())),
                    // Not made by a call that is followed: a socket, for one.
                    None => return,
                };
                if truncate {
                    self.change(node, Change::Truncate(0));
                }
                self.descriptors.insert(result, Descriptor { node, position: 0, append });
            }
            Call::Close { .. } => {}
            Call::Dup { fd } => {
                if let Some(descriptor) = self.descriptors.get(&fd).copied() {
                    self.descriptors.insert(result, descriptor);
                } else {
                    self.descriptors.remove(&result);
                }
            }
            Call::Seek { fd } => {
                if let Some(descriptor) = self.descriptors.get_mut(&fd) {
                    descriptor.position = result.unsigned_abs();
                }
            }
            Call::Write { fd, at, mut bytes } => {
                let Some(descriptor) = self.descriptors.get(&fd).copied() else { return };
                bytes.truncate(usize::try_from(result).unwrap());
                let at = at.unwrap_or(if descriptor.append { self.size(descriptor.node) } else { descriptor.position });
                let end = at + bytes.len() as u64;
                self.change(descriptor.node, Change::Write { at, bytes });
                self.descriptors.get_mut(&fd).unwrap().position = end;
            }
            Call::Truncate { fd, size } => self.change_of(fd, Change::Truncate(size)),
            Call::Allocate { fd, end } => self.change_of(fd, Change::Allocate(end)),
            Call::Rename { from, to } => self.rename(&from, &to),
            Call::Link { from, to } => {
                if let Some(&node) = self.paths.get(&from) {
                    self.name(&to, node);
                }
            }
            Call::Unlink { path } => {
                if self.paths.remove(&path).is_some() {
                    let change = NameChange::Remove(file_name(&path));
                    self.name_change(&path, change);
                }
            }
            Call::Mkdir { path } => {
                if self.inside(&path) {
                    self.add(&path, Node::Folder(FolderNode::default()));
                }
            }
            Call::Sync { fd, data_only } => self.sync(fd, data_only, begun),
        }
    }

    fn sync(&mut self, fd: i64, data_only: bool, begun: usize) {
        let Some(descriptor) = self.descriptors.get(&fd).copied() else { return };
        self.syncs += 1;
        let about_to_publish = self.doctored == Doctored::NoSyncBeforePublishing
            && self.paths.iter().any(|(path, &node)| {
                node == descriptor.node && path.extension().is_some_and(|extension| extension == "partial")
            });
        let published = std::mem::take(&mut self.published);
        match &mut self.nodes[descriptor.node] {
            Node::File(file) => {
                self.published = published;
                // A segment's last sync is the one after its last byte was written.
                let whole = || {
                    file.pending.iter().any(|(_, change)| matches!(change, Change::Write { at, bytes } if (at + bytes.len() as u64).is_multiple_of(1 << 20)))
                };
                if self.doctored == Doctored::NoContentSync || (about_to_publish && whole()) {
                    return;
                }
                file.sync(data_only, begun);
            }
            Node::Folder(folder) => {
                if self.doctored == Doctored::NoFolderSync
                    || (self.doctored == Doctored::NoFolderSyncAfterPublishing && published)
                {
                    return;
                }
                let (covered, rest) = folder.pending.drain(..).partition(|(at, _)| *at < begun);
                folder.pending = rest;
                apply_names(&mut folder.durable, covered);
            }
        }
    }

    fn rename(&mut self, from: &Path, to: &Path) {
        let Some(node) = self.paths.remove(from) else { return };
        assert!(matches!(self.nodes[node], Node::File(_)), "a folder was renamed: {}", from.display());
        self.paths.insert(to.to_owned(), node);
        self.published = to.file_name().is_some_and(|name| name.len() == 24);
        if from.parent() == to.parent() {
            self.name_change(to, NameChange::Move(file_name(from), file_name(to), node));
        } else {
            self.name_change(from, NameChange::Remove(file_name(from)));
            self.name_change(to, NameChange::Set(file_name(to), node));
        }
    }

    fn inside(&self, path: &Path) -> bool {
        self.roots.iter().any(|root| path.starts_with(root))
    }

    fn add(&mut self, path: &Path, node: Node) -> usize {
        self.nodes.push(node);
        let number = self.nodes.len() - 1;
        self.name(path, number);
        number
    }

    fn name(&mut self, path: &Path, node: usize) {
        self.paths.insert(path.to_owned(), node);
        self.name_change(path, NameChange::Set(file_name(path), node));
    }

    fn name_change(&mut self, path: &Path, change: NameChange) {
        let clock = self.clock;
        self.names_changed += 1;
        let folder = path.parent().and_then(|parent| self.paths.get(parent));
        let &folder = folder.unwrap_or_else(|| panic!("no folder of {}", path.display()));
        let Node::Folder(folder) = &mut self.nodes[folder] else { panic!("{}", path.display()) };
        folder.pending.push((clock, change));
    }

    fn change_of(&mut self, fd: i64, change: Change) {
        if let Some(descriptor) = self.descriptors.get(&fd).copied() {
            self.change(descriptor.node, change);
        }
    }

    fn change(&mut self, node: usize, change: Change) {
        let clock = self.clock;
        if let Node::File(file) = &mut self.nodes[node] {
            apply(&mut file.now, &change);
            file.pending.push((clock, change));
        }
    }

    fn size(&self, node: usize) -> u64 {
        match &self.nodes[node] {
            Node::File(file) => file.now.len() as u64,
            Node::Folder(_) => 0,
        }
    }

    /// Every file that a power loss leaves now, by its path.
    pub fn after_power_loss(&self, survives: Survives, dice: &mut Dice) -> BTreeMap<PathBuf, Vec<u8>> {
        let mut found = BTreeMap::new();
        for root in &self.roots {
            self.survivors(root, self.paths[root], survives, dice, &mut found);
        }
        found
    }

    fn survivors(
        &self,
        path: &Path,
        node: usize,
        survives: Survives,
        dice: &mut Dice,
        found: &mut BTreeMap<PathBuf, Vec<u8>>,
    ) {
        match &self.nodes[node] {
            Node::File(file) => drop(found.insert(path.to_owned(), file.after_power_loss(survives, dice))),
            Node::Folder(folder) => {
                let mut names = folder.durable.clone();
                let chosen = folder.pending.iter().filter(|_| match survives {
                    Survives::Nothing | Survives::Bytes => false,
                    Survives::Everything | Survives::Names => true,
                    Survives::Torn { .. } => dice.below(2) == 0,
                });
                let chosen: Vec<(usize, NameChange)> = chosen.cloned().collect();
                apply_names(&mut names, chosen);
                for (name, node) in names {
                    self.survivors(&path.join(name), node, survives, dice, found);
                }
            }
        }
    }

    /// What is different on the real disk: the model must know everything that happened.
    pub fn differences(&self) -> Vec<String> {
        let mut known = BTreeMap::new();
        for (path, &node) in &self.paths {
            if let Node::File(file) = &self.nodes[node] {
                known.insert(path.clone(), file.now.clone());
            }
        }
        let mut differences = Vec::new();
        let mut seen = BTreeSet::new();
        let mut folders = self.roots.clone();
        while let Some(folder) = folders.pop() {
            for entry in fs::read_dir(&folder).unwrap() {
                let entry = entry.unwrap();
                let kind = entry.file_type().unwrap();
                if kind.is_dir() {
                    folders.push(entry.path());
                } else if kind.is_file() {
                    seen.insert(entry.path());
                    let real = fs::read(entry.path()).unwrap();
                    match known.get(&entry.path()) {
                        None => differences.push(format!("{} is not known", entry.path().display())),
                        Some(bytes) if *bytes != real => {
                            differences.push(format!("{} has other bytes", entry.path().display()));
                        }
                        Some(_) => {}
                    }
                }
            }
        }
        differences.extend(
            known.keys().filter(|path| !seen.contains(*path)).map(|path| format!("{} is not there", path.display())),
        );
        differences
    }
}

fn apply_names(names: &mut BTreeMap<String, usize>, changes: Vec<(usize, NameChange)>) {
    for (_, change) in changes {
        match change {
            NameChange::Set(name, node) => drop(names.insert(name, node)),
            NameChange::Remove(name) => drop(names.remove(&name)),
            NameChange::Move(from, to, node) => {
                names.remove(&from);
                names.insert(to, node);
            }
        }
    }
}

fn file_name(path: &Path) -> String {
    path.file_name().unwrap().to_str().unwrap().to_owned()
}
