"""The version of this project: of its distribution, its commands and what its reports say."""

VERSION = "0.2.0"
