"""Completion in bash, which ends a word at `:` and `=`: a target, `NAME[:SM,...][=PRECISION]`, has both in it."""

from __future__ import annotations

from itertools import chain

from click.shell_completion import BashComplete, CompletionItem, add_completion_class

BREAKS = (":", "=")


class Bash(BashComplete):
    """click's own, with words put together again; bash is told what stands behind the last break, which is what it replaces."""

    typed = ""

    def get_completion_args(self) -> tuple[list[str], str]:
        args, incomplete = super().get_completion_args()
        words: list[str] = []
        for word in chain(args, [incomplete]):
            if words and (word.startswith(BREAKS) or words[-1].endswith(BREAKS)):
                words[-1] += word
            else:
                words.append(word)
        self.typed = words.pop()
        return words, self.typed

    def format_completion(self, item: CompletionItem) -> str:
        end = 1 + max(self.typed.rfind(each) for each in BREAKS)
        value = item.value[end:] if item.value.startswith(self.typed[:end]) else item.value
        return f"{item.type},{value}"


add_completion_class(Bash)
