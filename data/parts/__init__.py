"""What the commands of data/ share: conversion, records, pictures, checks, the phantom's anatomy."""
