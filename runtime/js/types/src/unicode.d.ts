/** Classes of characters as Python's `tokenizers` has them; written by tests/js/unicode_tables.py. */
export declare const CONTROL: string;
export declare const ACCENT: string;
export declare const PUNCTUATION: string;
