//! The hardware in the XML of a domain that libvirt saved, as a package keeps it: what libvirt needs to make the same devices at the same
//! places again, and nothing of the host.
//!
//! The XML of whoever saved the VM is never kept. It is read by a list of what is hardware (module `rules`) and written anew,
//! always in the same way, so that a reader can do the same with what a package holds and refuse it unless nothing changes.
//!
//! ```
//! # use vmnetx_pack::domain::{Hardware, HardwareError};
//! let saved = "<domain type='qemu'><name>web</name><memory>262144</memory><devices>
//!   <disk type='file'><source file='/srv/web.img'/><target dev='vda' bus='virtio'/></disk>
//! </devices></domain>";
//! let kept = Hardware::of_saved(saved, None)?.to_xml();
//! let disk = "<disk type='file'><target dev='vda' bus='virtio'/></disk>";
//! assert_eq!(kept, format!("<domain type='qemu'><memory>262144</memory><devices>{disk}</devices></domain>"));
//! assert_eq!(Hardware::of_package(&kept)?.to_xml(), kept);
//! let hostile = kept.replace("<target", "<source file='/etc/shadow'/><target");
//! assert!(matches!(Hardware::of_package(&hostile), Err(HardwareError::Host(path)) if path == "/domain/devices/disk/source"));
//! # Ok::<(), HardwareError>(())
//! ```

mod rules;

use std::fmt::Write;

use roxmltree::Node;
use vmnetx_format::limits::LIBVIRT_XML_BYTES_MAX;
use vmnetx_format::machine::Machine;

use self::rules::{DOMAIN, Rule, Value};
use super::error::DomainError;
use super::ledger::{Element, checked_text, parse, path, shown};
use super::{DiskFiles, describe};
use crate::limits::WORD_BYTES_MAX;

/// Why a domain's hardware cannot be kept, or what was kept is not believed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum HardwareError {
    /// It is not the XML of a domain.
    #[error(transparent)]
    Domain(#[from] DomainError),
    /// It has what no package can have.
    #[error("{path}: {why}")]
    Refused {
        /// The element or attribute.
        path: String,
        /// What is wrong with it.
        why: String,
    },
    /// What is kept in a package has something that belongs to a host.
    #[error("{0} names something of a host, which no package may")]
    Host(String),
    /// What is kept in a package was not written as this program writes it.
    #[error("it is not in the form in which hardware is kept")]
    Form,
    /// More hardware than a manifest has room for.
    #[error("its hardware has {0} bytes of XML, more than {LIBVIRT_XML_BYTES_MAX}")]
    TooLong(usize),
    /// The disks are not those of the package.
    #[error("it has {domain} disks, and the package {package}")]
    Disks {
        /// Disks in the XML.
        domain: usize,
        /// Disks of the package.
        package: usize,
    },
}

/// An element of a domain XML that is about to be written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Part {
    /// Its name.
    pub name: &'static str,
    /// Names and values of its attributes.
    pub attributes: Vec<(&'static str, String)>,
    /// Its text, before its parts.
    pub text: String,
    /// The elements in it.
    pub parts: Vec<Self>,
}

impl Part {
    /// An empty element.
    #[must_use]
    pub const fn new(name: &'static str) -> Self {
        Self { name, attributes: Vec::new(), text: String::new(), parts: Vec::new() }
    }

    /// With an attribute more.
    #[must_use]
    pub fn with(mut self, name: &'static str, value: impl Into<String>) -> Self {
        self.attributes.push((name, value.into()));
        self
    }

    /// With this text.
    #[must_use]
    pub fn text(mut self, text: impl Into<String>) -> Self {
        self.text = text.into();
        self
    }

    /// With an element more in it.
    #[must_use]
    pub fn holding(mut self, part: Self) -> Self {
        self.parts.push(part);
        self
    }

    /// The value of an attribute.
    #[must_use]
    pub fn attribute(&self, name: &str) -> Option<&str> {
        self.attributes.iter().find(|(known, _)| *known == name).map(|(_, value)| value.as_str())
    }

    /// The first element of this name in it.
    #[must_use]
    pub fn part(&self, name: &str) -> Option<&Self> {
        self.parts.iter().find(|part| part.name == name)
    }

    /// The first element of this name in it, made if there is none.
    pub fn part_mut(&mut self, name: &'static str) -> &mut Self {
        let at = self.parts.iter().position(|part| part.name == name).unwrap_or_else(|| {
            self.parts.push(Self::new(name));
            self.parts.len() - 1
        });
        &mut self.parts[at]
    }

    /// The text of the XML.
    #[must_use]
    pub fn to_xml(&self) -> String {
        let mut out = String::new();
        self.write(&mut out);
        out
    }

    fn write(&self, out: &mut String) {
        let Self { name, attributes, text, parts } = self;
        // Writing into a text never fails.
        let _ = write!(out, "<{name}");
        for (name, value) in attributes {
            let _ = write!(out, " {name}='{}'", escaped(value));
        }
        if text.is_empty() && parts.is_empty() {
            out.push_str("/>");
            return;
        }
        out.push('>');
        out.push_str(&escaped(text));
        parts.iter().for_each(|part| part.write(out));
        let _ = write!(out, "</{name}>");
    }
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('\'', "&apos;")
}

/// The hardware of a domain.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hardware {
    domain: Part,
    /// The first thing of a host that was left out.
    left_out: Option<String>,
}

impl Hardware {
    /// Takes the hardware from the XML in a file that libvirt saved a domain in. Of a CPU that is the host's, the cookie beside it says
    /// what it was.
    ///
    /// # Errors
    /// [`HardwareError`] with the path of what cannot be kept.
    pub fn of_saved(xml: &str, cookie: Option<&str>) -> Result<Self, HardwareError> {
        let mut cpu = None;
        if let Some(cookie) = cookie {
            // A part of a domain, in a root of its own.
            let text = format!("<domain>{cookie}</domain>");
            let document = parse(checked_text(text.as_bytes())?)?;
            let found = document.descendants().find(|node| node.has_tag_name("cpu"));
            cpu = found.map(|node| Reduction::new(None).element(cpu_rule()?, node)).transpose()?;
        }
        let kept = Self::reduce(xml, cpu)?;
        let bytes = kept.to_xml().len();
        if bytes > LIBVIRT_XML_BYTES_MAX { Err(HardwareError::TooLong(bytes)) } else { Ok(kept) }
    }

    /// Reads what a package has kept. It is believed only if it is what [`Self::of_saved`] would keep of it.
    ///
    /// # Errors
    /// [`HardwareError`] with the path of what does not belong there.
    pub fn of_package(xml: &str) -> Result<Self, HardwareError> {
        let kept = Self::reduce(xml, None)?;
        match kept.left_out {
            Some(path) => Err(HardwareError::Host(path)),
            None if kept.to_xml() != xml => Err(HardwareError::Form),
            None => Ok(kept),
        }
    }

    fn reduce(xml: &str, cpu: Option<Part>) -> Result<Self, HardwareError> {
        let document = parse(checked_text(xml.as_bytes())?)?;
        let mut reduction = Reduction::new(cpu);
        let domain = reduction.element(&DOMAIN, document.root_element())?;
        Ok(Self { domain, left_out: reduction.left_out })
    }

    /// The XML, always the same for the same hardware.
    #[must_use]
    pub fn to_xml(&self) -> String {
        self.domain.to_xml()
    }

    /// The domain, to be completed with what the host has.
    #[must_use]
    pub fn into_domain(self) -> Part {
        self.domain
    }

    /// What the disks are plugged in as (`vda`), in the order that they have in a package; `machine` is the package's, which must have
    /// as many.
    ///
    /// # Errors
    /// [`HardwareError::Disks`] when there are more or fewer.
    pub fn targets(&self, machine: &Machine, package_disks: usize) -> Result<Vec<String>, HardwareError> {
        let description = describe(self.to_xml().as_bytes(), machine.clone(), DiskFiles::Given)?;
        let targets: Vec<_> = description.disks.into_iter().map(|disk| disk.target).collect();
        match targets.len() {
            domain if domain == package_disks => Ok(targets),
            domain => Err(HardwareError::Disks { domain, package: package_disks }),
        }
    }
}

/// What a CPU may have.
fn cpu_rule() -> Result<&'static Rule, HardwareError> {
    DOMAIN.parts.iter().find(|rule| rule.name == "cpu").ok_or(HardwareError::Form)
}

/// Goes through a domain by the rules.
struct Reduction {
    /// What the host's own CPU was.
    cpu: Option<Part>,
    left_out: Option<String>,
}

impl Reduction {
    const fn new(cpu: Option<Part>) -> Self {
        Self { cpu, left_out: None }
    }

    /// An element of which there is a rule.
    fn element(&mut self, rule: &Rule, element: Element<'_>) -> Result<Part, HardwareError> {
        let refused = |why: &str| HardwareError::Refused { path: path(element), why: why.to_owned() };
        if rule.name == "disk" && !matches!(element.attribute("device"), None | Some("disk")) && has_medium(element) {
            return Err(refused(
                "there is a medium in the drive, which a package cannot have: eject it, then save the VM",
            ));
        }
        let mut part = Part::new(rule.name);
        self.attributes(rule, element, &mut part)?;
        for node in element.children() {
            if node.is_text() {
                text(rule, node, &mut part).map_err(|why| refused(&why))?;
            } else if node.is_element() {
                self.inner(rule, node, &mut part)?;
            }
        }
        Ok(part)
    }

    fn inner(&mut self, rule: &Rule, node: Element<'_>, part: &mut Part) -> Result<(), HardwareError> {
        let name = node.tag_name().name();
        if node.tag_name().namespace().is_some() {
            let why = "it is an option of a hypervisor, which no package can name".to_owned();
            return Err(HardwareError::Refused { path: path(node), why });
        }
        let is_hosts_cpu = name == "cpu" && node.attribute("mode").is_some_and(|mode| mode != "custom");
        if let Some(cpu) = self.cpu.take_if(|_| is_hosts_cpu) {
            part.parts.push(cpu);
        } else if let Some(inner) = rule.parts.iter().find(|inner| inner.name == name) {
            part.parts.push(self.element(inner, node)?);
        } else if rule.host.contains(&name) {
            self.left_out.get_or_insert_with(|| path(node));
        } else {
            let why = "vmnetx cannot have libvirt make it on another host".to_owned();
            return Err(HardwareError::Refused { path: path(node), why });
        }
        Ok(())
    }

    fn attributes(&mut self, rule: &Rule, element: Element<'_>, part: &mut Part) -> Result<(), HardwareError> {
        for attribute in element.attributes() {
            let (name, value) = (attribute.name(), attribute.value());
            let here = || format!("{}/@{}", path(element), name.chars().take(80).collect::<String>());
            let known = rule.attributes.iter().find(|(known, _)| *known == name && attribute.namespace().is_none());
            if known.is_some_and(|(_, allowed)| allowed.keep(value).is_some()) {
                continue;
            }
            if known.is_none() && rule.host.contains(&name) {
                self.left_out.get_or_insert_with(here);
                continue;
            }
            let why = match known {
                Some(_) => format!("{} cannot be had on another host", shown(value)),
                None => "vmnetx cannot have libvirt make it on another host".to_owned(),
            };
            return Err(HardwareError::Refused { path: here(), why });
        }
        for (name, allowed) in rule.attributes {
            if let Some(value) = element.attribute(*name).and_then(|value| allowed.keep(value)) {
                part.attributes.push((name, value.to_owned()));
            }
        }
        Ok(())
    }
}

/// Takes an element's text.
fn text(rule: &Rule, node: Node<'_, '_>, part: &mut Part) -> Result<(), String> {
    let text = node.text().unwrap_or_default().trim();
    if text.is_empty() {
        return Ok(());
    }
    let kept = rule.text.and_then(|allowed| allowed.keep(text)).filter(|_| part.text.is_empty());
    part.text = kept.ok_or_else(|| format!("{} cannot be had on another host", shown(text)))?.to_owned();
    Ok(())
}

impl Value {
    /// What is kept of a value, if it may be one.
    fn keep<'a>(&self, value: &'a str) -> Option<&'a str> {
        let is_word = || {
            let is_of_words = |byte: u8| byte.is_ascii_alphanumeric() || b"._:+-".contains(&byte);
            (1..=WORD_BYTES_MAX).contains(&value.len()) && value.bytes().all(is_of_words)
        };
        match self {
            Self::Word => is_word().then_some(value),
            Self::Own => is_word().then_some(""),
            Self::Of(values) => values.contains(&value).then_some(value),
            Self::Becomes(values) => values.contains(&value).then(|| values.last().copied()).flatten(),
        }
    }
}

fn has_medium(drive: Element<'_>) -> bool {
    drive.children().any(|node| node.has_tag_name("source"))
}
