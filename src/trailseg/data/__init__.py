"""Data sets as pictures with class ids: readers, procedural scenes, the decoded memory and augmentation."""
