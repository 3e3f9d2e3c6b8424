//! The real model beside ONNX Runtime and Hugging Face's tokenizers.

use tilewise::Tensor;

use crate::expected;
use crate::model::{LONGEST, Memory, MiniLm, WIDTH, similarity};
use crate::tokens::WordPiece;
use crate::{VOCABULARY, WEIGHTS};

/// A sentence, its tokens, and its embedding where it is stored.
struct Case {
    text: String,
    tokens: Vec<u32>,
    embedding: Option<Vec<f32>>,
}

fn cases() -> Vec<Case> {
    let mut cases: Vec<Case> = Vec::new();
    for line in expected::lines("embed.txt") {
        if line.starts_with('"') {
            let text = serde_json::from_str(&line).unwrap();
            cases.push(Case { text, tokens: Vec::new(), embedding: None });
            continue;
        }
        let (array, case) = (expected::array(&line), cases.last_mut().unwrap());
        match array.name.as_str() {
            "tokens" => case.tokens = array.numbers.iter().map(|&token| token as u32).collect(),
            _ => case.embedding = Some(array.numbers.iter().map(|&x| x as f32).collect()),
        }
    }
    cases
}

#[test]
fn tokens_are_those_of_the_tokenizers_library() {
    let Some(vocabulary) = expected::model(VOCABULARY) else { return };
    let pieces = WordPiece::parse(&String::from_utf8(vocabulary).unwrap()).unwrap();
    for case in cases() {
        assert_eq!(pieces.encode(&case.text, LONGEST), case.tokens, "{:?}", case.text);
    }
}

#[test]
fn embeddings_are_those_of_onnx_runtime() {
    let Some(weights) = expected::model(WEIGHTS) else { return };
    let model = MiniLm::parse(&weights).unwrap();
    let cases: Vec<Case> = cases().into_iter().filter(|case| case.embedding.is_some()).collect();
    let sentences: Vec<Vec<u32>> = cases.iter().map(|case| case.tokens.clone()).collect();
    let mut memory = Memory::default();
    // All at once, some of one length, and each alone in the memory of the others.
    let mut together = Tensor::<f32, 2>::zeros([cases.len(), WIDTH]).unwrap();
    model.embed(&sentences, &mut memory, together.view_mut()).unwrap();
    for ((case, sentence), row) in cases.iter().zip(&sentences).zip(together.as_slice().chunks_exact(WIDTH)) {
        let mut alone = Tensor::<f32, 2>::zeros([1, WIDTH]).unwrap();
        model.embed(std::slice::from_ref(sentence), &mut memory, alone.view_mut()).unwrap();
        let theirs = case.embedding.as_deref().unwrap();
        for ours in [row, alone.as_slice()] {
            let most = ours.iter().zip(theirs).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
            assert!(most < 2e-6, "{:?}: a number differs by {most}", case.text);
            assert!(1.0 - similarity(ours, theirs) < 1e-6, "{:?}", case.text);
        }
        assert_eq!(row, alone.as_slice(), "{:?}: alone it has other bits", case.text);
    }
}
