"""Modules of the standard library as far as the guest needs them, which it has instead (`stage1.vm.runtime`).

They are imported by the names they have in the library, here and there. Half of what the guest's first process would
otherwise do until it can be spoken to is to define classes that nobody uses, such as those in `enum`, and to compile
regular expressions. When the modules of the guest cannot be imported with them, as when another version of the library
wants more, the initramfs is made without. What is used in functions only is not found out like that, but by a test.
"""
