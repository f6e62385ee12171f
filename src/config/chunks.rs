//! A key file in pieces: a million keys are parsed some hundred at a time, so that the tree of all never exists.

/// A run of list items of a key file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Chunk {
    /// The place of its first item in the list.
    pub first: usize,
    pub start: usize,
    pub end: usize,
    /// How many lines stand before it.
    pub lines_before: usize,
}

/// How the list of keys lies in the text.
#[derive(Debug, PartialEq, Eq)]
pub struct Layout {
    /// Whether it stands under `keys:` rather than being the whole file.
    pub under_keys: bool,
    pub chunks: Vec<Chunk>,
    /// How many there are in all of them.
    pub items: usize,
}

/// Large enough to make the cost of a parse small, small enough to be nothing.
const TARGET: usize = 64 << 10;

/// Cuts the text before items of its list, which is safe because what stands at a block list's own indentation is either
/// an item of it or its end. `None` when the text is not simply such a list.
pub fn split(text: &str) -> Option<Layout> {
    let mut layout = Layout { under_keys: false, chunks: Vec::new(), items: 0 };
    let mut indentation = None;
    let mut at = 0;
    for (number, line) in text.split_inclusive('\n').enumerate() {
        let start = at;
        at += line.len();
        let trimmed = line.trim_start_matches(' ');
        let content = trimmed.trim_end();
        if content.is_empty() || content.starts_with('#') {
            continue;
        }
        let depth = line.len() - trimmed.len();
        let is_item = content == "-" || content.starts_with("- ");
        match indentation {
            None if is_item => indentation = Some(depth),
            None if content == "keys:" && depth == 0 && !layout.under_keys => {
                layout.under_keys = true;
                continue;
            }
            None => return None,
            Some(list) if depth > list => continue,
            Some(list) if depth == list && is_item => {}
            Some(_) => return None,
        }
        if layout.chunks.last().is_none_or(|chunk| start - chunk.start >= TARGET) {
            if let Some(last) = layout.chunks.last_mut() {
                last.end = start;
            }
            layout.chunks.push(Chunk { first: layout.items, start, end: text.len(), lines_before: number });
        }
        layout.items += 1;
    }
    (!layout.chunks.is_empty()).then_some(layout)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_are_cut_before_items() {
        let item = format!("- id: a\n  secret: >\n    {}\n    - no item\n\n# comment\n", "x".repeat(TARGET / 2));
        let text = item.repeat(5);
        let layout = split(&text).unwrap();
        let firsts: Vec<usize> = layout.chunks.iter().map(|chunk| chunk.first).collect();
        assert_eq!(firsts, [0, 2, 4]);
        let mut end = 0;
        for chunk in &layout.chunks {
            assert_eq!(chunk.start, end);
            assert!(text[chunk.start..].starts_with("- id"));
            assert_eq!(text[..chunk.start].lines().count(), chunk.lines_before);
            end = chunk.end;
        }
        assert_eq!((end, layout.items), (text.len(), 5));
    }

    #[test]
    fn both_forms_are_known_and_nothing_else() {
        assert!(!split("# keys\n\n- id: a\n- id: b\n").unwrap().under_keys);
        assert!(split("keys:\n- id: a\n").unwrap().under_keys);
        assert!(split("keys:\n  - id: a\n  -\n    id: b\r\n").unwrap().under_keys);
        for other in ["", "[{ id: a }]", "keys: []", "---\n- a\n", "- a\n---\n- b\n", "- a\nb: c\n", " - a\n- b\n"] {
            assert_eq!(split(other), None, "{other}");
        }
    }
}
