"""Many videos that survive anything: checked as a whole, claimed one by one in a shared folder, each made once."""
