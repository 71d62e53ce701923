//! The account of a domain's XML: what has been dealt with, and a remark for each thing that has not.

use std::borrow::Cow;
use std::collections::HashSet;

use roxmltree::{Document, Node, ParsingOptions};

use super::error::DomainError;
use super::remark::{Remark, RemarkKind};
use crate::limits::{DOMAIN_BYTES_MAX, DOMAIN_DEPTH_MAX, DOMAIN_NAMESPACES_MAX, DOMAIN_NODES_MAX, DOMAIN_REMARKS_MAX};

/// An element of a domain.
pub(super) type Element<'a> = Node<'a, 'a>;

/// Why something is not in the machine, by the name of the element or attribute.
pub(super) type Reasons = &'static [(&'static str, &'static str)];

/// Characters that are shown of a name or value of the text.
const SHOWN_CHARS: usize = 80;

const UNKNOWN: &str = "vmnetx does not know it in this place";

/// The text of a domain XML, if it is not too large and is not made to take long.
pub(super) fn checked_text(xml: &[u8]) -> Result<&str, DomainError> {
    if xml.len() > DOMAIN_BYTES_MAX {
        return Err(DomainError::TooLong);
    }
    let text = std::str::from_utf8(xml).map_err(|_| DomainError::NotText)?;
    // The parser's time for an element grows with the square of the namespaces that are in force there.
    if text.matches("xmlns").count() > DOMAIN_NAMESPACES_MAX {
        return Err(DomainError::TooManyNamespaces);
    }
    Ok(text)
}

/// Parses a domain XML and checks that its tree is not too deep to be walked.
pub(super) fn parse(text: &str) -> Result<Document<'_>, DomainError> {
    let options = ParsingOptions { allow_dtd: false, nodes_limit: DOMAIN_NODES_MAX, ..ParsingOptions::default() };
    let document = Document::parse_with_options(text, options).map_err(|error| match error {
        roxmltree::Error::DtdDetected => DomainError::Doctype,
        roxmltree::Error::NodesLimitReached => DomainError::TooManyNodes,
        error => DomainError::Syntax(error.to_string().chars().take(300).flat_map(char::escape_debug).collect()),
    })?;
    let root = document.root_element();
    if root.tag_name().namespace().is_some() || root.tag_name().name() != "domain" {
        return Err(DomainError::NotADomain(clip(root.tag_name().name())));
    }
    let (mut node, mut depth) = (root, 1);
    loop {
        if let Some(child) = node.first_child() {
            (node, depth) = (child, depth + 1);
            if depth > DOMAIN_DEPTH_MAX {
                return Err(DomainError::TooDeep);
            }
            continue;
        }
        while node.next_sibling().is_none() && node != root {
            let Some(parent) = node.parent() else { return Ok(document) };
            (node, depth) = (parent, depth - 1);
        }
        match node.next_sibling() {
            Some(next) if node != root => node = next,
            _ => return Ok(document),
        }
    }
}

/// Which parts of a domain have been dealt with, and the remarks so far. Parts are known by where they begin in the text.
#[derive(Debug)]
pub(super) struct Ledger<'a> {
    root: Element<'a>,
    seen: HashSet<usize>,
    /// Elements that stand with all that is in them for one remark.
    settled: HashSet<usize>,
    remarks: Vec<(usize, Remark)>,
}

impl<'a> Ledger<'a> {
    pub(super) fn new(root: Element<'a>) -> Self {
        let seen = HashSet::from([place(root)]);
        Self { root, seen, settled: HashSet::new(), remarks: Vec::new() }
    }

    /// The child elements that nothing has been done with yet, foreign namespaces aside.
    pub(super) fn elements(&self, parent: Element<'a>) -> Vec<Element<'a>> {
        let own = |node: &Element<'_>| node.is_element() && node.tag_name().namespace().is_none();
        parent.children().filter(|node| own(node) && !self.seen.contains(&place(*node))).collect()
    }

    /// Takes an element as dealt with; what is in it is still to be.
    pub(super) fn take(&mut self, element: Element<'a>) {
        self.seen.insert(place(element));
    }

    /// Takes all children of this name.
    pub(super) fn children(&mut self, parent: Element<'a>, name: &str) -> Vec<Element<'a>> {
        let found: Vec<_> = self.elements(parent).into_iter().filter(|node| node.tag_name().name() == name).collect();
        self.seen.extend(found.iter().map(|node| place(*node)));
        found
    }

    /// Takes the first child of this name. A second one is left over.
    pub(super) fn child(&mut self, parent: Element<'a>, name: &str) -> Option<Element<'a>> {
        let found = self.elements(parent).into_iter().find(|node| node.tag_name().name() == name)?;
        self.take(found);
        Some(found)
    }

    /// Takes an attribute.
    pub(super) fn attribute(&mut self, element: Element<'a>, name: &str) -> Option<&'a str> {
        let attribute = element.attribute_node(name)?;
        self.seen.insert(attribute.range().start);
        Some(attribute.value())
    }

    /// Takes an element's text, without the white space around it.
    pub(super) fn text(&mut self, element: Element<'a>) -> &'a str {
        let Some(text) = element.children().find(Node::is_text) else { return "" };
        self.seen.insert(place(text));
        text.text().unwrap_or_default().trim()
    }

    /// A remark on an element, whose parts are still to be dealt with.
    pub(super) fn note(&mut self, kind: RemarkKind, element: Element<'a>, why: impl Into<Cow<'static, str>>) {
        self.take(element);
        self.push(kind, place(element), path(element), why);
    }

    /// A remark on an attribute, if the element has it.
    pub(super) fn note_attribute(
        &mut self,
        kind: RemarkKind,
        element: Element<'a>,
        name: &str,
        why: impl Into<Cow<'static, str>>,
    ) {
        if let Some(attribute) = element.attribute_node(name) {
            let place = attribute.range().start;
            self.seen.insert(place);
            self.push(kind, place, format!("{}/@{name}", path(element)), why);
        }
    }

    /// A remark on something that the element `parent` does not have.
    pub(super) fn note_absent(
        &mut self,
        kind: RemarkKind,
        parent: Element<'a>,
        name: &str,
        why: impl Into<Cow<'static, str>>,
    ) {
        self.push(kind, place(parent), format!("{}/{name}", path(parent)), why);
    }

    /// A remark on an element with all that is in it.
    pub(super) fn settle(&mut self, kind: RemarkKind, element: Element<'a>, why: impl Into<Cow<'static, str>>) {
        self.note(kind, element, why);
        self.settled.insert(place(element));
    }

    /// Settles the children that these reasons name.
    pub(super) fn settle_children(&mut self, kind: RemarkKind, parent: Element<'a>, reasons: Reasons) {
        for element in self.elements(parent) {
            if let Some((_, why)) = reasons.iter().find(|(name, _)| *name == element.tag_name().name()) {
                self.settle(kind, element, *why);
            }
        }
    }

    /// Remarks on the attributes that these reasons name.
    pub(super) fn note_attributes(&mut self, kind: RemarkKind, element: Element<'a>, reasons: Reasons) {
        for (name, why) in reasons {
            self.note_attribute(kind, element, name, *why);
        }
    }

    /// The remarks in the order of the text, with one on each part that nobody dealt with.
    pub(super) fn finish(mut self) -> Result<Vec<Remark>, DomainError> {
        self.leftovers(self.root, RemarkKind::Dropped)?;
        self.remarks.sort_by_key(|(place, _)| *place);
        Ok(self.remarks.into_iter().map(|(_, remark)| remark).collect())
    }

    /// Goes through a seen element: what is left over in it is of the kind `unknown`.
    fn leftovers(&mut self, element: Element<'a>, unknown: RemarkKind) -> Result<(), DomainError> {
        if self.settled.contains(&place(element)) {
            return Ok(());
        }
        // An unknown device is hardware that the guest may need.
        let devices = element.parent() == Some(self.root) && element.tag_name().name() == "devices";
        let unknown = if devices { RemarkKind::Refused } else { unknown };
        let here = path(element);
        for attribute in element.attributes() {
            if !self.seen.contains(&attribute.range().start) {
                self.push(unknown, attribute.range().start, format!("{here}/@{}", clip(attribute.name())), UNKNOWN);
            }
        }
        for node in element.children() {
            if self.remarks.len() > DOMAIN_REMARKS_MAX {
                return Err(DomainError::TooManyRemarks);
            }
            let seen = self.seen.contains(&place(node));
            if node.is_element() && seen {
                self.leftovers(node, unknown)?;
            } else if node.is_element() {
                // The elements of other namespaces are options of a hypervisor.
                let foreign = node.tag_name().namespace().is_some();
                let kind = if foreign { RemarkKind::Refused } else { unknown };
                self.push(kind, place(node), path(node), if foreign { FOREIGN } else { UNKNOWN });
            } else if node.is_text() && !seen && !node.text().unwrap_or_default().trim().is_empty() {
                self.push(unknown, place(node), format!("{here}/text()"), UNKNOWN);
            }
        }
        if self.remarks.len() > DOMAIN_REMARKS_MAX { Err(DomainError::TooManyRemarks) } else { Ok(()) }
    }

    fn push(&mut self, kind: RemarkKind, place: usize, path: String, why: impl Into<Cow<'static, str>>) {
        self.remarks.push((place, Remark { kind, path, why: why.into() }));
    }
}

const FOREIGN: &str = "it is an option of a hypervisor, which no package can name";

/// Text of the domain fit to be shown: short, in quotes, with its special characters escaped.
pub(super) fn shown(text: &str) -> String {
    format!("{:?}", clip(text))
}

/// An element's path, with the number of each step that has namesakes beside it.
pub(super) fn path(element: Element<'_>) -> String {
    let mut steps: Vec<_> = element.ancestors().filter(Node::is_element).map(step).collect();
    steps.push(String::new());
    steps.reverse();
    steps.join("/")
}

fn step(element: Element<'_>) -> String {
    let name = clip(element.tag_name().name());
    let prefix = element.tag_name().namespace().and_then(|namespace| element.lookup_prefix(namespace));
    let name = prefix.map_or(name.clone(), |prefix| format!("{}:{name}", clip(prefix)));
    let Some(parent) = element.parent() else { return name };
    let namesakes = || parent.children().filter(|node| node.is_element() && node.tag_name() == element.tag_name());
    match (namesakes().count(), namesakes().position(|node| node == element)) {
        (2.., Some(position)) => format!("{name}[{}]", position + 1),
        _ => name,
    }
}

fn place(node: Node<'_, '_>) -> usize {
    node.range().start
}

fn clip(text: &str) -> String {
    text.chars().take(SHOWN_CHARS).collect()
}
